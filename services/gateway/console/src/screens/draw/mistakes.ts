/** What the server finds wrong with a request, by the form's fields. */
import { FIELDS, type Field } from "./settings";

export interface Mistakes {
  fields: Partial<Record<Field | "model", string>>;
  /** What belongs to no field of the form. */
  others: string[];
}

const PLACE = /^input\.(?:inference(?:\[\d+\])?\.)?([a-z_]+): /;

/** Each mistake begins with the path of its field. */
export function mistakesOf(texts: readonly string[]): Mistakes {
  const found: Mistakes = { fields: {}, others: [] };
  for (const text of texts) {
    const [place, name] = PLACE.exec(text) ?? [];
    if (!isField(name)) found.others.push(text);
    else found.fields[name] = [found.fields[name], text.slice(place!.length)].filter(Boolean).join("; ");
  }
  return found;
}

const isField = (name: string | undefined): name is Field | "model" =>
  name === "model" || FIELDS.includes(name as Field);
