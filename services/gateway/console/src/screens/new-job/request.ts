/** From the form to a request, and from an earlier job's input to the form. */
import { type Field, type Group, type Value, FIELDS, PRESETS, fieldsOf } from "../../api/parameters";
import { textOf, typed } from "./fields";

/** Texts by field name; what is empty stays at its default. */
export type Texts = Readonly<Record<string, string>>;

export interface Form {
  /** Empty: none. */
  preset: string;
  train: Texts;
  /** null: nothing is held out. */
  validation: Texts | null;
  /** One a line. */
  samplePrompts: string;
  /** What is drawn at the end, each with its `prompt`. */
  images: readonly Texts[];
}

export type Train = Readonly<Record<string, Value>>;
export interface Request {
  input: { train: Train; inference?: readonly Readonly<Record<string, Value>>[] };
}

export const EMPTY: Form = { preset: "", train: {}, validation: null, samplePrompts: "", images: [] };

/** The request of a form; what has mistakes is left out of it. */
export function requestOf(form: Form, dataUrl: string): Request {
  const train = { data_url: dataUrl, ...trainOf(form) };
  const images = drawn(form).map((image) => ({ prompt: image.prompt!, ...valuesOf("inference", image) }));
  return { input: { train, ...(images.length > 0 && { inference: images }) } };
}

/** The fields of `train` but the data: the preset's, and above them those that were typed. */
export function trainOf(form: Form): Train {
  const samplePrompts = linesOf(form.samplePrompts);
  return {
    ...presetOf(form.preset),
    ...ownOf(form),
    ...(samplePrompts.length > 0 && { sample_prompts: samplePrompts }),
    ...(form.validation && { validation: valuesOf("validation", form.validation) }),
  };
}

/** The fields that were typed. */
export const ownOf = (form: Form): Train => ({ ...valuesOf("train", form.train), ...valuesOf("beyond", form.train) });

export const presetOf = (name: string): Train =>
  Object.fromEntries(Object.entries(PRESETS[name] ?? {}).map(([field, choice]) => [field, choice.value]));

export const linesOf = (text: string): string[] => text.split("\n").map((line) => line.trim()).filter(Boolean);

/** Entries without a prompt are not yet filled in. */
const drawn = (form: Form): readonly Texts[] => form.images.filter((image) => image.prompt?.trim());

function valuesOf(group: Group, texts: Texts): Record<string, Value> {
  const values: Record<string, Value> = {};
  for (const [field, text] of typedFields(group, texts)) {
    const result = typed(field, text);
    if ("value" in result) values[field.name] = result.value;
  }
  return values;
}

function typedFields(group: Group, texts: Texts): [Field, string][] {
  return fieldsOf(group).flatMap((field) => {
    const text = texts[field.name];
    return text?.trim() ? [[field, text] as [Field, string]] : [];
  });
}

export type Mistakes = Readonly<Record<string, string>>;

/** What is obviously wrong, by the field's path in the request. */
export function mistakesOf(form: Form): Mistakes {
  return Object.fromEntries([
    ...mistakesIn("train", "input.train", form.train),
    ...mistakesIn("beyond", "input.train", form.train),
    ...mistakesIn("validation", "input.train.validation", form.validation ?? {}),
    ...drawn(form).flatMap((image, index) => mistakesIn("inference", imagePath(index), image)),
  ]);
}

function mistakesIn(group: Group, path: string, texts: Texts): [string, string][] {
  return typedFields(group, texts).flatMap(([field, text]) => {
    const result = typed(field, text);
    return "mistake" in result ? [[`${path}.${field.name}`, result.mistake] as [string, string]] : [];
  });
}

export const imagePath = (index: number): string => `input.inference[${index}]`;

/** An entry's place in the request, where entries without a prompt have none. */
export const placeOf = (form: Form, index: number): number => drawn({ ...form, images: form.images.slice(0, index) }).length;

/**
 * The server's mistakes by the path that each begins with.
 *
 * @returns beside them those that begin with no path of a field of the form.
 */
export function sorted(mistakes: readonly string[]): { byPath: Mistakes; others: string[] } {
  const byPath: Record<string, string> = {};
  const others: string[] = [];
  for (const mistake of mistakes) {
    const [, path, text] = /^(input\.[\w.[\]]+): (.+)$/s.exec(mistake) ?? [];
    if (path && text && isOfForm(path)) byPath[path] = text[0]!.toUpperCase() + text.slice(1);
    else others.push(mistake);
  }
  return { byPath, others };
}

function isOfForm(path: string): boolean {
  const parts = /^input\.(train|train\.validation|inference\[\d+\])\.(\w+)$/.exec(path);
  const [, parent, name] = parts ?? [];
  return name !== "data_url" && name !== "validation" && FIELDS.some((field) => field.name === name && belongs(field.group, parent));
}

function belongs(group: Group, parent: string | undefined): boolean {
  if (group === "inference") return parent?.startsWith("inference") ?? false;
  return group === "validation" ? parent === "train.validation" : parent === "train";
}

/** Of mistakes in an earlier form those whose field is as it was. */
export function remaining(byPath: Mistakes, before: Form, form: Form): Mistakes {
  return Object.fromEntries(Object.entries(byPath).filter(([path]) => textAt(before, path) === textAt(form, path)));
}

function textAt(form: Form, path: string): string | undefined {
  const [, parent, place, name = ""] = /^input\.(train|train\.validation|inference\[(\d+)\])\.(\w+)$/.exec(path) ?? [];
  if (name === "sample_prompts") return form.samplePrompts;
  if (place !== undefined) return drawn(form)[Number(place)]?.[name];
  return parent === "train" ? form.train[name] : form.validation?.[name];
}

interface Input {
  train?: Train | null;
  inference?: unknown;
}

/** The form that makes an earlier job's request. */
export function formOf(input: Input): Form {
  const train = input.train ?? {};
  const entries = [input.inference ?? []].flat() as Record<string, Value>[];
  const validation = train.validation as Record<string, Value> | null | undefined;
  return {
    preset: "",
    train: { ...textsOf("train", train), ...textsOf("beyond", train) },
    validation: validation ? textsOf("validation", validation) : null,
    samplePrompts: ((train.sample_prompts ?? []) as string[]).map((prompt) => prompt.replaceAll("\n", " ")).join("\n"),
    images: entries.map((entry) => ({ prompt: textOf(entry.prompt ?? ""), ...textsOf("inference", entry) })),
  };
}

/** What differs from its default. */
function textsOf(group: Group, values: Record<string, Value>): Texts {
  return Object.fromEntries(
    fieldsOf(group).flatMap((field) => {
      const value = values[field.name];
      return value == null || value === field.default ? [] : [[field.name, textOf(value)]];
    }),
  );
}
