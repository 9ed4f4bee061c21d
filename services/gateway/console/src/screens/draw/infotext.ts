/** Settings out of an image: ours, or stable-diffusion-webui's text, which many programs write. */
import { type Field, type Settings, choicesOf, isSeed, rangeOf } from "./settings";

export interface Taken {
  settings: Partial<Settings>;
  /** What the text says and the form cannot: the name, and the value as it stands there. */
  unknown: [name: string, value: string][];
  /** Whether words in plain brackets, or in the webui's own marks, mean something else here. */
  hasOtherSyntax: boolean;
}

/** The webui's names of our schedulers; those without one keep ours. */
export const WEBUI_NAMES: Record<string, string> = {
  "DPM-M": "DPM++ 2M",
  "EULER-A": "Euler a",
  "EULER-D": "Euler",
  HEUN: "Heun",
  "K-LMS": "LMS",
  "KDPM2-A": "DPM2 a",
  "KDPM2-D": "DPM2",
  PNDM: "PLMS",
};

const PARAMETER = /\s*([\p{L}\p{N}_][\p{L}\p{N}_ \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)/gu;
/** A last line with fewer is part of the prompt, as the webui reads it. */
const LEAST_PARAMETERS = 3;
const NEGATIVE = "Negative prompt:";
const OURS = "everydream ";
/** What we write beside the settings; of our own images it needs no remark. */
const ABOUT_OURS = ["Model hash", "Model", "Clip skip", "RNG", "Version"];
/** Our JSON's names beside the prompts. */
const OUR_NAMES: [name: string, field: Field][] = [
  ["steps", "num_inference_steps"], ["guidance_scale", "guidance_scale"], ["scheduler", "scheduler"],
  ["seed", "seed"], ["width", "width"], ["height", "height"],
];
const OTHER_SYNTAX = /<[a-z]+:[^>]*>|(?<!\\)\[|(?<!\\)\((?![^()]*:\s*[\d.]+\s*\))/;

/** What an image says of how it was drawn; null: nothing. */
export function takenFrom(texts: ReadonlyMap<string, string>): Taken | null {
  const everything = texts.get("everydream");
  const ours = everything === undefined ? null : takenFromJson(everything);
  if (ours) return ours;
  const text = texts.get("parameters");
  return text === undefined ? null : takenFromText(text);
}

/** Our JSON has the prompts literally, which the webui's text cannot always tell. */
function takenFromJson(json: string): Taken | null {
  let said: unknown;
  try {
    said = JSON.parse(json);
  } catch {
    return null; // the webui's text beside it may do
  }
  if (typeof said !== "object" || said === null) return null;
  const { prompt, negative_prompt, ...others } = said as Record<string, unknown>;
  if (typeof prompt !== "string") return null;
  const settings = { prompt, negative_prompt: typeof negative_prompt === "string" ? negative_prompt : "" };
  const taken: Taken = { settings, unknown: [], hasOtherSyntax: false };
  for (const [name, field] of OUR_NAMES) if (name in others) take(taken, field, name, String(others[name]));
  return taken;
}

export function takenFromText(text: string): Taken | null {
  const lines = text.trim().split("\n");
  const pairs = parametersIn(lines.at(-1)!);
  if (pairs.length >= LEAST_PARAMETERS) lines.pop();
  else pairs.length = 0;
  const [prompt, negative] = promptsIn(lines);
  if (!prompt && !negative && !pairs.length) return null;

  const settings = { prompt, negative_prompt: negative };
  const taken: Taken = { settings, unknown: [], hasOtherSyntax: false };
  const isOurs = pairs.some(([name, value]) => name === "Version" && value.startsWith(OURS));
  for (const [name, value] of pairs) {
    if (!takeNamed(taken, name, value) && !(isOurs && ABOUT_OURS.includes(name))) taken.unknown.push([name, value]);
  }
  taken.hasOtherSyntax = !isOurs && [prompt, negative].some((each) => OTHER_SYNTAX.test(each));
  return taken;
}

function parametersIn(line: string): [string, string][] {
  return [...line.matchAll(PARAMETER)].map(([, name, value]) => [name!, unquoted(value!.trim())]);
}

function unquoted(value: string): string {
  if (!value.startsWith('"')) return value;
  try {
    return String(JSON.parse(value));
  } catch {
    return value; // quotes that are no JSON are part of the value, as the webui reads them
  }
}

function promptsIn(lines: readonly string[]): [prompt: string, negative: string] {
  const parts: [string[], string[]] = [[], []];
  let part = parts[0];
  for (const each of lines) {
    let line = each.trim();
    if (line.startsWith(NEGATIVE)) {
      part = parts[1];
      line = line.slice(NEGATIVE.length).trim();
    }
    part.push(line);
  }
  return [parts[0].join("\n").trim(), parts[1].join("\n").trim()];
}

/** Whether this parameter is a setting here; one whose value is not offered is `unknown`. */
function takeNamed(taken: Taken, name: string, value: string): boolean {
  switch (name) {
    case "Steps":
      return take(taken, "num_inference_steps", name, value);
    case "CFG scale":
      return take(taken, "guidance_scale", name, value);
    case "Seed":
      return take(taken, "seed", name, value);
    case "Sampler":
      return take(taken, "scheduler", name, value);
    case "Size":
      return takeSize(taken, name, value);
    default:
      return false;
  }
}

function takeSize(taken: Taken, name: string, value: string): true {
  const [, width, height] = /^(\d+)x(\d+)$/.exec(value) ?? [];
  const isOffered = [width, height].every((side) => side && choicesOf("width").includes(side));
  if (isOffered) Object.assign(taken.settings, { width, height });
  else taken.unknown.push([name, value]);
  return true;
}

function take(taken: Taken, field: Field, name: string, value: string): true {
  const known = field === "scheduler" ? schedulerOf(value) : value;
  if (known !== undefined && isOffered(field, known)) taken.settings[field] = known;
  else taken.unknown.push([name, value]);
  return true;
}

const schedulerOf = (name: string): string | undefined =>
  choicesOf("scheduler").find((ours) => name === ours || name === WEBUI_NAMES[ours]);

function isOffered(field: Field, value: string): boolean {
  if (field === "seed") return isSeed(value);
  const choices = choicesOf(field);
  if (choices.length) return choices.includes(value);
  const { min, max } = rangeOf(field);
  return value.trim() !== "" && Number(value) >= min && Number(value) <= max;
}
