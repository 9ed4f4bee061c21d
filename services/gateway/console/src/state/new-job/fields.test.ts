import { describe, expect, it } from "vitest";
import { FIELDS, PRESETS, fieldNamed, fieldsOf } from "../../api/parameters";
import { found, rangeOf, textOf, typed } from "./fields";

const lr = fieldNamed("train", "lr");
const epochs = fieldNamed("train", "max_epochs");

describe("what is typed", () => {
  it("is a number in any usual notation", () => {
    expect(typed(lr, "2e-6")).toEqual({ value: 2e-6 });
    expect(typed(lr, " .5 ")).toEqual({ value: 0.5 });
    expect(typed(epochs, "100")).toEqual({ value: 100 });
  });

  it.each([
    [lr, "0"], [lr, "1.5"], [lr, "0x1"], [lr, "fast"], [epochs, "0"], [epochs, "1.5"], [epochs, "1e2"],
    [fieldNamed("train", "seed"), "9007199254740993"],
    [fieldNamed("beyond", "ema_decay_rate"), "1"],
    [fieldNamed("train", "lr_scheduler"), "sine"],
  ])("is a mistake, which says what was expected, if it is outside its range: %o", (field, text) => {
    expect(typed(field, text)).toEqual({ mistake: `Expected ${rangeOf(field)}.` });
  });

  it("is never null, which the ranges of the documents name", () => {
    expect(rangeOf(fieldNamed("train", "ckpt_every_n_minutes"))).toBe("an integer of at least 0");
  });

  it("is what a value is shown as", () => {
    expect([textOf(3e-6), textOf(0.04), textOf(0), textOf(300), textOf(null), textOf(false)]).toEqual(["3e-6", "0.04", "0", "300", "", "false"]);
  });

  it("is a choice of the choice's own type", () => {
    expect(typed(fieldNamed("train", "resolution"), "768")).toEqual({ value: 768 });
    expect(typed(fieldNamed("train", "lr_scheduler"), "cosine")).toEqual({ value: "cosine" });
    expect(typed(fieldNamed("train", "amp"), "false")).toEqual({ value: false });
  });
});

describe("the parameters", () => {
  it("are valid as they are by default", () => {
    for (const field of fieldsOf("train", "beyond", "validation", "inference")) {
      if (field.default === null) continue;
      expect(typed(field, textOf(field.default)), field.name).toEqual({ value: field.default });
    }
  });

  it("all have a kind that a form can show", () => {
    expect(fieldsOf("train", "beyond", "validation", "inference").filter((field) => field.kind === "other")).toEqual([]);
    expect(FIELDS.length).toBeGreaterThan(50);
  });

  it("are valid as presets set them", () => {
    const all = fieldsOf("train", "beyond");
    for (const fields of Object.values(PRESETS)) {
      for (const [name, { value }] of Object.entries(fields)) {
        expect(typed(all.find((field) => field.name === name)!, String(value)), name).toEqual({ value });
      }
    }
  });

  it("are found by their names' words and by their help", () => {
    const names = (search: string) => found(fieldsOf("train", "beyond"), search).map((field) => field.name);
    expect(names("lr warmup")).toEqual(["lr_warmup_steps"]);
    expect(names("clip_skip")).toEqual(["clip_skip"]);
    expect(names("mirror")).toContain("flip_p");
    expect(names("")).toHaveLength(fieldsOf("train", "beyond").length);
    expect(names("no such thing")).toEqual([]);
  });
});
