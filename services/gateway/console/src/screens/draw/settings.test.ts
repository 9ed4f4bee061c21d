import train from "openapi:RequestTrain";
import { describe, expect, test } from "vitest";
import { BASE_MODEL } from "../../state/pictures";
import { STANDARD, WEIGHT, WEIGHTS, choicesOf, entriesOf, entryOf, rangeOf, settingsOf, settingsOfImage } from "./settings";

describe("the form's settings", () => {
  test("are offered and bounded as the API's document says", () => {
    expect(choicesOf("scheduler")).toContain("K-LMS");
    expect(choicesOf("width")).toEqual(choicesOf("height"));
    expect(rangeOf("num_outputs")).toEqual({ min: 1, max: 10 });
    expect(choicesOf("scheduler")).toContain(STANDARD.scheduler);
    expect(train.properties.resume_ckpt_url?.default).toBe(BASE_MODEL);
  });

  test("make an entry with numbers, and null for what is left empty", () => {
    const settings = { ...STANDARD, prompt: "a", num_inference_steps: "7", guidance_scale: "2.5", seed: "0", loras: "0.8, -1" };
    expect(entryOf(settings)).toMatchObject({ loras: [0.8, -1], prompt: "a", negative_prompt: null, width: 512, num_inference_steps: 7, guidance_scale: 2.5, seed: 0 });
    expect(entryOf({ ...settings, seed: "", loras: "" })).toMatchObject({ seed: null, loras: null });
  });

  test("come back from an entry, with the standard for what it leaves out", () => {
    const settings = { ...STANDARD, prompt: "a", width: "128", seed: "5", num_outputs: "3", loras: "0.8,0.3" };
    expect(settingsOf(entryOf(settings))).toEqual(settings);
    expect(settingsOf({ prompt: "a" })).toEqual({ ...STANDARD, prompt: "a" });
  });

  test.each([-1, 2 ** 60, 1.5, null])("a seed of %s is left open", (seed) => {
    expect(settingsOf({ prompt: "a", seed }).seed).toBe("");
  });

  test("of an image draw that image alone", () => {
    const image = {
      image: "x", prompt: "a", negative_prompt: null, width: 128, height: 256, num_inference_steps: 9, guidance_scale: 3,
      scheduler: "DDIM", seed: 12, passback: null,
    };
    const input = { inference: [{ prompt: "a", num_outputs: 2 }, { prompt: "a", loras: [0.8, 0.3] }] };
    const again = settingsOfImage(image, input, 2);
    expect(again).toMatchObject({ prompt: "a", negative_prompt: "", height: "256", seed: "12", num_outputs: "1", loras: "0.8,0.3" });
    expect(settingsOfImage(image, input, 1).loras).toBe("");
  });

  test("of a request are one entry or a list", () => {
    expect(entriesOf({ inference: { prompt: "a" } })).toEqual([{ prompt: "a" }]);
    expect(entriesOf({ inference: [{ prompt: "a" }, { prompt: "b" }] })).toHaveLength(2);
    expect(entriesOf({ inference: null })).toEqual([]);
  });
});

test("a LoRA takes one weight, and several take one each", () => {
  const fits = (pattern: string, text: string) => new RegExp(`^(?:${pattern})$`, "v").test(text); // as a browser reads it
  expect(["0.5", " -1 ", "+.8"].map((text) => fits(WEIGHT, text))).toEqual([true, true, true]);
  expect(["0.5, 1", "x", "1e5"].map((text) => fits(WEIGHT, text))).toEqual([false, false, false]);
  expect(["0.5", "0.5, -1 ,.8"].map((text) => fits(WEIGHTS, text))).toEqual([true, true]);
  expect(["0.5,", "0.5 1"].map((text) => fits(WEIGHTS, text))).toEqual([false, false]);
});
