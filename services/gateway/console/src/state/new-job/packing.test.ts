import { describe, expect, it } from "vitest";
import { type Chosen, MAX_ZIP, planOf } from "./packing";

const files = (...paths: string[]): Chosen<null>[] => paths.map((path) => ({ path, size: 10, file: null }));
const packed = (given: Chosen<null>[]): string[] => {
  const plan = planOf(given);
  return plan.kind === "pack" ? plan.chosen.map((each) => each.path) : [plan.kind];
};

describe("what is uploaded", () => {
  it("is pictures with their captions and options, in order, in their folders", () => {
    expect(packed(files("a/2.PNG", "b/multiply.txt", "a/1.jpg", "a/1.caption", "global.yaml"))).toEqual([
      "a/1.caption", "a/1.jpg", "a/2.PNG", "b/multiply.txt", "global.yaml",
    ]);
  });

  it("begins in the folder that holds everything, even if that is hidden", () => {
    expect(packed(files(".photos/ted/1.jpg", ".photos/2.jpg"))).toEqual(["2.jpg", "ted/1.jpg"]);
    expect(packed(files("one/1.jpg", "two/1.jpg"))).toEqual(["one/1.jpg", "two/1.jpg"]);
    expect(packed(files("1.jpg"))).toEqual(["1.jpg"]);
  });

  it("is nothing hidden", () => {
    expect(packed(files("x/.DS_Store", "x/._1.jpg", "x/__MACOSX/1.jpg", "x/1.jpg"))).toEqual(["1.jpg"]);
  });

  it("is a zip as it is", () => {
    expect(planOf(files("photos.ZIP"))).toMatchObject({ kind: "zip", chosen: { path: "photos.ZIP" } });
    expect(planOf(files("x/photos.zip", "x/.DS_Store"))).toMatchObject({ kind: "zip", chosen: { path: "photos.zip" } });
  });
});

describe("what is not uploaded", () => {
  it("is named with its reason", () => {
    const large = { path: "2.png", size: 257 * 2 ** 20, file: null };
    const long = { path: "1.txt", size: 65 * 2 ** 10, file: null };
    expect(planOf([...files("1.jpg", "film.mp4", "README"), large, long])).toMatchObject({
      kind: "pack",
      leftOut: [
        { path: "film.mp4", reason: "kind" }, { path: "README", reason: "kind" },
        { path: "2.png", reason: "large" }, { path: "1.txt", reason: "large" },
      ],
    });
  });

  it("is a zip among others, a choice without pictures, and too much", () => {
    expect(planOf(files("1.zip", "1.jpg"))).toMatchObject({ kind: "none", reason: "mixed" });
    expect(planOf(files("1.txt", "2.mp4"))).toMatchObject({ kind: "none", reason: "empty", leftOut: [{ path: "2.mp4" }] });
    expect(planOf([])).toMatchObject({ kind: "none", reason: "empty" });
    expect(planOf([{ path: "1.zip", size: MAX_ZIP + 1, file: null }])).toMatchObject({ kind: "none", reason: "large" });
    expect(planOf(files(...Array.from({ length: 50_001 }, (_, index) => `${index}.jpg`)))).toMatchObject({ reason: "many" });
  });
});
