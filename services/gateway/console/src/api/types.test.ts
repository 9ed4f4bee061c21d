import { expect, it } from "vitest";
import { jobIdIn } from "./types";

it("reads a job's id however it was typed, and none from anything else", () => {
  const id = "6335978d-6aed-5f49-b848-85ff70eccf47";
  expect([id, ` ${id}\n`, id.toUpperCase()].map(jobIdIn)).toEqual([id, id, id]);
  expect(["", "..", "6335978d", `${id}/x`, `${id}0`].map(jobIdIn)).toEqual(Array(5).fill(undefined));
});
