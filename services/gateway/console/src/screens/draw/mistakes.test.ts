import { expect, test } from "vitest";
import { mistakesOf } from "./mistakes";

test("a mistake stands beside the field whose path it begins with", () => {
  const found = mistakesOf([
    "input.inference[0].width: expected one of 128, 256, got 100",
    "input.inference.seed: expected an integer, got 1.5",
    "input.model: no job of yours has this id",
  ]);
  expect(found.fields).toEqual({
    width: "expected one of 128, 256, got 100", seed: "expected an integer, got 1.5", model: "no job of yours has this id",
  });
  expect(found.others).toEqual([]);
});

test("two mistakes of a field stand there both", () => {
  expect(mistakesOf(["input.model: one", "input.model: two"]).fields.model).toBe("one; two");
});

test("what belongs to no field of the form is kept whole", () => {
  const texts = ["input: expected either train or model", "input.inference[0].passback: expected a string", "The server does not answer."];
  expect(mistakesOf(texts)).toEqual({ fields: {}, others: texts });
});
