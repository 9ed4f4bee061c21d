import { expect, test } from "vitest";
import { smooth } from "./smooth";

test("without a weight a curve stays as it is", () => {
  expect(smooth([1, null, 3], 0)).toEqual([1, null, 3]);
});

test("a straight line stays where it is", () => {
  expect(smooth([2, 2, 2, 2], 0.9)).toEqual([2, 2, 2, 2]);
});

test("a peak is flattened and not shifted", () => {
  const smoothed = smooth([0, 0, 0, 1, 0, 0, 0], 0.5) as number[];
  expect(Math.max(...smoothed)).toBe(smoothed[3]);
  expect(smoothed[3]).toBeLessThan(1);
});

test("what is missing stays missing, and moves nothing else", () => {
  const smoothed = smooth([1, null, 1], 0.5);
  expect(smoothed).toEqual([1, null, 1]);
});
