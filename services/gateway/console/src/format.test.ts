import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { bytes, count, duration, moment, number } from "./format";

const speak = (...languages: string[]) => vi.stubGlobal("navigator", { languages });
beforeEach(() => speak("en"));
afterEach(() => vi.unstubAllGlobals());

test.each([
  [0, "0 sec"],
  [59.6, "1 min"],
  [200, "3 min 20 sec"],
  [7500, "2 hr 5 min"],
  [90_000, "1 day 1 hr"],
  [-5, "0 sec"],
])("%d seconds are %s", (seconds, words) => expect(duration(seconds)).toBe(words));

test.each([
  [1, "1 byte"],
  [999, "999 bytes"],
  [4_260_000_000, "4.26 GB"],
])("%d bytes are %s", (size, words) => expect(bytes(size)).toBe(words));

test("numbers are written as the browser's language does", () => {
  speak("de");
  expect(count(12345)).toBe("12.345");
  expect(number(0.03475)).toBe("0,03475");
});

test("a very small number keeps its digits", () => {
  expect(number(1.5e-6)).toBe("1.5E-6");
  expect(number(0)).toBe("0");
});

test("a time of today has no date", () => {
  const now = new Date("2026-03-01T12:00:00");
  expect(moment("2026-03-01T09:05:00", now)).toMatch(/^9:05/);
  expect(moment("2026-02-27T09:05:00", now)).toContain("Feb 27, 2026");
});
