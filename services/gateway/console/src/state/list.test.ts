import { expect, test } from "vitest";
import { listOf } from "./list";

test("one look reads on until it has found enough, and the next goes on behind it", async () => {
  const asked: (string | undefined)[] = [];
  const list = listOf(async (cursor) => {
    asked.push(cursor);
    const place = Number(cursor ?? 0);
    return { items: place % 2 ? Array(9).fill(place) : [], next: place < 8 ? String(place + 1) : null };
  });
  await list.more();
  expect(asked).toEqual([undefined, "1", "2", "3"]);
  expect(list.items.value).toHaveLength(18);
  await list.more();
  expect(asked.slice(4)).toEqual(["4", "5", "6", "7"]);
  expect(list.hasMore.value).toBe(true);
  await list.more();
  expect(list.hasMore.value).toBe(false);
  await list.more();
  expect(asked).toHaveLength(9);
});

test("what fails is said, and tried again at the same place", async () => {
  let isAway = true;
  const list = listOf(async () => {
    if (isAway) throw new Error("away");
    return { items: [1], next: null };
  });
  await list.more();
  expect(list.problem.value?.message).toBe("away");
  expect(list.isEmpty.value).toBe(false);
  isAway = false;
  await list.more();
  expect(list.problem.value).toBeUndefined();
  expect(list.items.value).toEqual([1]);
});

test("a list is empty when all of it was read, and not while there may be more", async () => {
  let pages = 6;
  const list = listOf(async () => ({ items: [], next: --pages ? "on" : null }));
  expect(list.isEmpty.value).toBe(false);
  await list.more();
  expect(list.hasMore.value).toBe(true);
  expect(list.isEmpty.value).toBe(false);
  await list.more();
  expect(list.isEmpty.value).toBe(true);
});
