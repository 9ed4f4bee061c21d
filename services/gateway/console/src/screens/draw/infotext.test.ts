import { describe, expect, test } from "vitest";
import python from "../../../../../inferencer/generation/infotext.py?raw";
import { WEBUI_NAMES, takenFrom, takenFromText } from "./infotext";
import { choicesOf } from "./settings";

const OURS = `a red wall
Negative prompt: blue, dull
Steps: 50, Sampler: LMS, CFG scale: 7.5, Seed: 42, Size: 512x768, Model hash: 0123456789, \
Model: "last, \\"wall\\"", Clip skip: 2, RNG: CPU, Version: everydream 0.1.0`;

describe("the webui's text", () => {
  test("of ours gives all settings, and nothing is unknown", () => {
    expect(takenFromText(OURS)).toEqual({
      settings: {
        prompt: "a red wall", negative_prompt: "blue, dull", num_inference_steps: "50", scheduler: "K-LMS",
        guidance_scale: "7.5", seed: "42", width: "512", height: "768",
      },
      unknown: [],
      hasOtherSyntax: false,
    });
  });

  test("of other programs gives what we know, and names the rest", () => {
    const text = `portrait of a man, (masterpiece)
second line
Negative prompt: lowres,
bad hands
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1234567890, Size: 512x512, Model: dream, \
Lora hashes: "one: 123, two: 456", Denoising strength: 0.7, Version: v1.6.0`;
    expect(takenFromText(text)).toEqual({
      settings: {
        prompt: "portrait of a man, (masterpiece)\nsecond line", negative_prompt: "lowres,\nbad hands",
        num_inference_steps: "20", guidance_scale: "7", seed: "1234567890", width: "512", height: "512",
      },
      unknown: [
        ["Sampler", "DPM++ 2M Karras"], ["Model", "dream"], ["Lora hashes", "one: 123, two: 456"],
        ["Denoising strength", "0.7"], ["Version", "v1.6.0"],
      ],
      hasOtherSyntax: true,
    });
  });

  test("has settings that are not offered here: they are named, not taken", () => {
    const taken = takenFromText("a\nSteps: 501, Sampler: UniPC, CFG scale: 0.5, Seed: 18446744073709551615, Size: 1216x832");
    expect(taken?.settings).toEqual({ prompt: "a", negative_prompt: "" });
    expect(taken?.unknown.map(([name]) => name)).toEqual(["Steps", "Sampler", "CFG scale", "Seed", "Size"]);
  });

  test("without a prompt begins with the settings", () => {
    expect(takenFromText("Steps: 5, Sampler: DDIM, CFG scale: 3")?.settings.prompt).toBe("");
  });

  test("with fewer than three settings in its last line is a prompt alone", () => {
    expect(takenFromText("a wall, at: 3, by: c")).toMatchObject({ settings: { prompt: "a wall, at: 3, by: c" }, unknown: [] });
  });

  test("that is empty gives nothing", () => expect(takenFromText(" \n ")).toBeNull());

  test("with a value in quotes that is no JSON keeps it as it is", () => {
    expect(takenFromText('a\nSteps: 1, Seed: 1, Size: 512x512, Model: "a\\x"')?.unknown).toEqual([["Model", '"a\\x"']]);
  });

  test.each([
    ["(red:1.2) wall", false], ["a \\(red\\) \\[wall\\]", false], ["(a red wall: 0.7), blue", false],
    ["((red))", true], ["[red]", true], ["<lora:wall:0.8>", true],
  ])("%s has another meaning there: %s", (prompt, isOther) => {
    expect(takenFromText(`${prompt}\nSteps: 1, Seed: 1, Size: 512x512`)?.hasOtherSyntax).toBe(isOther);
  });
});

describe("our JSON", () => {
  const everything = {
    job: "1", step: null, prompt: "a\nNegative prompt: b", negative_prompt: null, scheduler: "DPM-S", seed: 7, steps: 3,
    guidance_scale: 1, width: 128, height: 256, clip_skip: 0, model: "", sha256: "", passback: null, version: "0.1.0",
  };

  test("counts more than the text, and has prompts literally", () => {
    const texts = new Map([["everydream", JSON.stringify(everything)], ["parameters", OURS]]);
    expect(takenFrom(texts)).toEqual({
      settings: {
        prompt: "a\nNegative prompt: b", negative_prompt: "", scheduler: "DPM-S", seed: "7", num_inference_steps: "3",
        guidance_scale: "1", width: "128", height: "256",
      },
      unknown: [],
      hasOtherSyntax: false,
    });
  });

  test("names what is not offered: a sample's side may be larger", () => {
    const texts = new Map([["everydream", JSON.stringify({ ...everything, width: 1152, height: 1152 })]]);
    expect(takenFrom(texts)?.unknown).toEqual([["width", "1152"], ["height", "1152"]]);
  });

  test.each(["{", "null", "[]", "{}"])("that is %s leaves the text beside it", (json) => {
    expect(takenFrom(new Map([["everydream", json], ["parameters", OURS]]))?.settings.seed).toBe("42");
  });

  test("an image without both says nothing", () => expect(takenFrom(new Map([["Software", "x"]]))).toBeNull());
});

describe("schedulers", () => {
  test("have the names under which our images are written", () => {
    const written = [...python.matchAll(/^ {4}"([A-Z0-9-]+)": "([^"]+)",/gm)].map(([, ours, theirs]) => [ours, theirs]);
    expect(Object.entries(WEBUI_NAMES)).toEqual(written);
  });

  test.each(choicesOf("scheduler"))("%s comes back by either name", (name) => {
    for (const said of [name, WEBUI_NAMES[name] ?? name]) {
      expect(takenFromText(`a\nSteps: 1, Sampler: ${said}, Seed: 1`)?.settings.scheduler).toBe(name);
    }
  });
});
