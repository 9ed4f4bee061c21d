/** From what is typed into a field to its value, and the other way round. */
import type { Field, Value } from "../../api/parameters";
import { count } from "../../format";
import { texts } from "../../texts";

export type Typed = { value: Value } | { mistake: string };

/** Integers beyond it would silently become others. */
const MOST = Number.MAX_SAFE_INTEGER;

/** The value of a text that is not empty. */
export function typed(field: Field, text: string): Typed {
  const value = valueOf(field, text.trim(), text);
  return value === undefined ? { mistake: texts.newJob.expected(texts.newJob.formats[field.name] ?? rangeOf(field)) } : { value };
}

function valueOf(field: Field, trimmed: string, text: string): Value | undefined {
  switch (field.kind) {
    case "boolean":
      return trimmed === "true" ? true : trimmed === "false" ? false : undefined;
    case "choice":
      return field.choices?.find((choice) => String(choice) === trimmed);
    case "integer":
      return /^[+-]?\d+$/.test(trimmed) ? inRange(field, Number(trimmed)) : undefined;
    case "numbers": {
      const values = trimmed.split(/[\s,;]+/).filter(Boolean).map((each) => valueOf({ ...field, kind: "number" }, each, each) as number | undefined);
      return values.every((each) => each !== undefined) ? values : undefined;
    }
    case "number":
      return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(trimmed) ? inRange(field, Number(trimmed)) : undefined;
    default:
      if (field.pattern === undefined) return text;
      return new RegExp(field.pattern).test(trimmed) ? trimmed : undefined;
  }
}

function inRange({ kind, least, most, above, below }: Field, value: number): number | undefined {
  const fits =
    Number.isFinite(value) &&
    value >= (least ?? -Infinity) &&
    value <= (most ?? Infinity) &&
    value > (above ?? -Infinity) &&
    value < (below ?? Infinity);
  return fits && (kind !== "integer" || Math.abs(value) <= MOST) ? value : undefined;
}

/** What is allowed, in words; nothing typed stands for null, and nobody comes near the largest numbers. */
export const rangeOf = (field: Field): string =>
  field.range
    .replace(/ or null$/, "")
    .replace(/ from (\S+) to (2147483647|9223372036854775807)$/, " of at least $1")
    .replace(/\d{5,}/g, (number) => count(Number(number)));

/** A value as it would be typed: small numbers with an exponent, as learning rates are written. */
export function textOf(value: Value): string {
  if (typeof value === "number" && value !== 0 && Math.abs(value) < 1e-3) return value.toExponential();
  if (Array.isArray(value)) return value.map((each) => textOf(each as Value)).join(", ");
  return value === null ? "" : String(value);
}

/** Those whose name or help has every word of a search. */
export function found(fields: readonly Field[], search: string): Field[] {
  const words = search.toLowerCase().split(/[\s_]+/).filter(Boolean);
  return fields.filter((field) => {
    const text = `${field.name} ${field.name.replaceAll("_", " ")} ${field.help}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

/** A name as a label: `lr_warmup_steps` is "Lr warmup steps". */
export function labelOf(name: string): string {
  const words = name.replaceAll("_", " ");
  return words[0]!.toUpperCase() + words.slice(1);
}
