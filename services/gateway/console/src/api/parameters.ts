/** The parameters of a request, with what the documents say of each. */
import made from "./parameters.json";

export type Value = string | number | boolean | null | object;
export type Group = "train" | "beyond" | "validation" | "inference" | "s3Config" | "policy";

export interface Field {
  name: string;
  group: Group;
  kind: "boolean" | "integer" | "number" | "numbers" | "text" | "choice" | "other";
  default: Value;
  /** What is allowed, in words. */
  range: string;
  /** Markdown, of which only code is used. */
  help: string;
  required?: boolean;
  /** Of a text. */
  pattern?: string;
  choices?: readonly (string | number)[];
  least?: number;
  most?: number;
  above?: number;
  below?: number;
}

export interface Choice {
  value: string | number | boolean;
  why: string;
  source: string;
}

export const FIELDS = made.fields as readonly Field[];
export const PRESETS = made.presets as Readonly<Record<string, Readonly<Record<string, Choice>>>>;

/** Fields that have a place of their own in a form. */
const APART = ["data_url", "sample_prompts", "validation", "prompt"];

/** They are not shown, and stand in no text that might be kept. */
export const SECRETS: readonly string[] = ["accessId", "accessSecret"];

export const fieldsOf = (...groups: Group[]): Field[] =>
  FIELDS.filter((field) => groups.includes(field.group) && !APART.includes(field.name));

export function fieldNamed(group: Group, name: string): Field {
  const field = FIELDS.find((each) => each.group === group && each.name === name);
  if (!field) throw new Error(`there is no parameter ${name}`);
  return field;
}
