import { expect, test } from "vitest";
import { nameIn } from "./zip";

test("images of different jobs never share a name, and sort in the order of the results", () => {
  const names = [["a", 0], ["a", 2], ["a", 10], ["b", 0]].map(([id, index]) =>
    nameIn({ job: { id: id as string }, index: index as number, image: { seed: 7 } }),
  );
  expect(names).toEqual(["a/0000-seed-7.png", "a/0002-seed-7.png", "a/0010-seed-7.png", "b/0000-seed-7.png"]);
});
