import { expect, it } from "vitest";
import { type Mark, marked, rateOf } from "./transfer";

it("knows no rate at first, nor when nothing gets on", () => {
  expect(rateOf([])).toBeUndefined();
  expect(rateOf([{ at: 0, sent: 0 }, { at: 100, sent: 50 }])).toBeUndefined();
  expect(rateOf([{ at: 0, sent: 50 }, { at: 5000, sent: 50 }])).toBeUndefined();
});

it("counts the last ten seconds, and nothing that has to be sent again", () => {
  let marks: Mark[] = [];
  for (const mark of [{ at: 0, sent: 0 }, { at: 6000, sent: 9000 }, { at: 7000, sent: 6000 }, { at: 17_000, sent: 26_000 }]) {
    marks = marked(marks, mark);
  }
  expect(marks).toEqual([{ at: 7000, sent: 6000 }, { at: 17_000, sent: 26_000 }]);
  expect(rateOf(marks)).toBe(2000);
});
