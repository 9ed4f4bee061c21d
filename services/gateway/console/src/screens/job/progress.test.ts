import { expect, it } from "vitest";
import { epochNow, shareOf } from "./progress";

it("counts epochs from 1, and none after the last", () => {
  expect(epochNow({ epoch: 0, step: 0, steps: 90 })).toBe(1);
  expect(epochNow({ epoch: 1, step: 3, steps: 90 })).toBe(2);
  expect(epochNow({ epoch: 30, step: 90, steps: 90 })).toBe(30);
});

it("knows no share before it knows how much there is to do", () => {
  expect(shareOf({ step: 9, steps: 90 })).toBe(0.1);
  expect(shareOf({ step: 91, steps: 90 })).toBe(1);
  expect([shareOf({}), shareOf({ step: 0, steps: 0 }), shareOf(undefined)]).toEqual([undefined, undefined, undefined]);
});
