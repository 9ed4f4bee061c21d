import { expect, it } from "vitest";

const SOURCES = import.meta.glob<string>("./**/*.{ts,tsx}", { query: "?raw", import: "default", eager: true });
/** From the lowest to the highest: each may import itself and what stands before it. */
const LAYERS = ["api", "state", "parts", "screens"];

it("imports only go down", () => {
  const upward = Object.entries(SOURCES).flatMap(([file, source]) => {
    const own = LAYERS.indexOf(file.split("/")[1]!);
    const imported = [...source.matchAll(/from "((?:\.\.?\/)+[^"]*)"/g)].map((match) => new URL(match[1]!, `file:///${file.slice(2)}`).pathname);
    return own < 0 ? [] : imported.filter((path) => LAYERS.indexOf(path.split("/")[1]!) > own).map((path) => `${file} imports ${path}`);
  });
  expect(upward).toEqual([]);
  expect(Object.keys(SOURCES).length).toBeGreaterThan(50);
});
