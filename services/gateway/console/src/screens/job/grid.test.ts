import { describe, expect, test } from "vitest";
import type { Sample } from "../../api/types";
import { gridOf, moved } from "./grid";

const sample = (step: number, prompt: string): Sample => ({ step, prompt, epoch: 0, seed: 1, image: `${step}-${prompt}.png` });

describe("the samples' grid", () => {
  const grid = gridOf([sample(0, "cat"), sample(0, "dog"), sample(20, "cat"), sample(100, "cat"), sample(100, "dog")]);

  test("has its newest step first, and its prompts in the order of the request", () => {
    expect(grid.steps).toEqual([100, 20, 0]);
    expect(grid.columns.map((each) => each.prompt)).toEqual(["cat", "dog"]);
  });

  test("shows a prompt that was asked for twice twice", () => {
    const twice = [sample(0, "cat"), { ...sample(0, "cat"), seed: 2 }, sample(20, "cat")];
    expect(gridOf(twice).cells).toEqual([[twice[2], undefined], [twice[0], twice[1]]]);
  });

  test("leaves a cell empty whose sample is not there", () => {
    expect(grid.cells[1]).toEqual([sample(20, "cat"), undefined]);
  });

  test("is walked by arrow keys, over what is empty", () => {
    expect(moved(grid, { row: 0, column: 1 }, "ArrowDown")).toEqual({ row: 2, column: 1 });
    expect(moved(grid, { row: 2, column: 1 }, "ArrowUp")).toEqual({ row: 0, column: 1 });
    expect(moved(grid, { row: 0, column: 0 }, "ArrowRight")).toEqual({ row: 0, column: 1 });
  });

  test("has an end on every side", () => {
    expect(moved(grid, { row: 0, column: 0 }, "ArrowUp")).toEqual({ row: 0, column: 0 });
    expect(moved(grid, { row: 1, column: 0 }, "ArrowRight")).toEqual({ row: 1, column: 0 });
    expect(moved(grid, { row: 0, column: 0 }, "Enter")).toEqual({ row: 0, column: 0 });
  });

  test("of no samples is empty", () => {
    expect(gridOf([])).toEqual({ columns: [], steps: [], cells: [] });
  });
});
