import { expect, it } from "vitest";
import { addressOf, wantedIn } from "./wanted";

it("reads from an address what was written into it", () => {
  const wanted = { kind: "draw", status: "FAILED", id: "0a1b", from: "a b&c" } as const;
  expect(wantedIn(addressOf(wanted).slice(2))).toEqual(wanted);
  expect(addressOf(wantedIn(""))).toBe("/");
});

it.each(["status=toString", "kind=constructor", "status=__proto__", "kind=hasOwnProperty", "status=DONE", "kind="])(
  "filters by nothing when an address asks for what is no kind and no status: %s",
  (address) => expect(addressOf(wantedIn(address))).toBe("/"),
);
