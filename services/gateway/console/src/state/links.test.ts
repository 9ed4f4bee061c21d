import { expect, it } from "vitest";
import { steady } from "./links";

it("is the same link for an hour, however often it is signed anew", () => {
  expect(steady("https://here/files/a.webp?expires=1", 0)).toBe("https://here/files/a.webp?expires=1");
  expect(steady("https://here/files/a.webp?expires=2", 1000)).toBe("https://here/files/a.webp?expires=1");
  expect(steady("https://here/files/b.webp?expires=2", 1000)).toBe("https://here/files/b.webp?expires=2");
  expect(steady("https://here/files/a.webp?expires=3", 3_600_000)).toBe("https://here/files/a.webp?expires=3");
});
