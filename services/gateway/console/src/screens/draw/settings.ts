/** How images are drawn: the API's fields, and the form's texts for them. */
import inference from "openapi:RequestInference";
import type { Entry, Image } from "../../api/types";

const fields = inference.properties;

/** The form: every field as its control has it. */
export interface Settings {
  prompt: string;
  negative_prompt: string;
  width: string;
  height: string;
  num_inference_steps: string;
  guidance_scale: string;
  scheduler: string;
  /** Empty: random. */
  seed: string;
  num_outputs: string;
  /** A number for each LoRA of the model, separated by commas; empty: as the model has them. */
  loras: string;
}

export type Field = keyof Settings;
export const FIELDS: readonly Field[] = [
  "prompt", "negative_prompt", "width", "height", "num_inference_steps", "guidance_scale", "scheduler", "seed", "num_outputs",
  "loras",
];

/** What the API offers for a field. */
export const choicesOf = (field: Field): string[] =>
  (fields[field]?.enum ?? []).filter((each) => each !== null).map(String);

export interface Range {
  min: number;
  max: number;
}

export function rangeOf(field: Field): Range {
  return { min: fields[field]!.minimum!, max: fields[field]!.maximum! };
}

const standard = (field: Field): string => String(fields[field]?.default ?? "");

export const STANDARD: Settings = {
  prompt: "",
  negative_prompt: "",
  width: standard("width"),
  height: standard("height"),
  num_inference_steps: standard("num_inference_steps"),
  guidance_scale: standard("guidance_scale"),
  scheduler: standard("scheduler"),
  seed: "",
  num_outputs: standard("num_outputs"),
  loras: "",
};

/** A seed that every browser counts exactly: below 10^15. The API takes larger ones, and draws none at random. */
export const SEED = "[0-9]{1,15}";

export const isSeed = (text: string): boolean => new RegExp(`^${SEED}$`).test(text);

/** The request's entry for what the form says; what is left empty has the API's default. */
export function entryOf(settings: Settings): Entry {
  const number = (text: string) => (text.trim() === "" ? null : Number(text));
  return {
    prompt: settings.prompt,
    negative_prompt: settings.negative_prompt || null,
    width: number(settings.width) as Entry["width"],
    height: number(settings.height) as Entry["height"],
    num_outputs: number(settings.num_outputs),
    num_inference_steps: number(settings.num_inference_steps),
    guidance_scale: number(settings.guidance_scale),
    scheduler: settings.scheduler as Entry["scheduler"],
    seed: number(settings.seed),
    passback: null,
    loras: settings.loras.trim() ? settings.loras.split(",").map(Number) : null,
  };
}

/** What the form takes as `loras` of a model that is one LoRA, and of others. */
export const WEIGHT = String.raw`\s*[+\-]?[\d.]+\s*`;
export const WEIGHTS = `${WEIGHT}(,${WEIGHT})*`;

/** The form for an entry of a request, whose fields may be left out or null. */
export function settingsOf(entry: Partial<Entry>): Settings {
  const found: Settings = { ...STANDARD };
  for (const field of FIELDS) {
    const value = entry[field];
    if (value !== undefined && value !== null) found[field] = String(value);
  }
  if (!isSeed(found.seed)) found.seed = "";
  return found;
}

/** The form that draws this very image again, whose place among the results of a request is known. */
export const settingsOfImage = (image: Image, input: Record<string, unknown>, index: number): Settings =>
  settingsOf({ ...image, num_outputs: 1, loras: entryAt(input, index)?.loras ?? null } as Partial<Entry>);

/** The entry that asks for the image at this place. */
function entryAt(input: Record<string, unknown>, index: number): Partial<Entry> | undefined {
  let end = 0;
  return entriesOf(input).find((entry) => (end += Number(settingsOf(entry).num_outputs)) > index);
}

/** A request's entries: one, or a list of them. */
export function entriesOf(input: Record<string, unknown>): Partial<Entry>[] {
  const given = input.inference;
  if (!given) return [];
  return (Array.isArray(given) ? given : [given]) as Partial<Entry>[];
}
