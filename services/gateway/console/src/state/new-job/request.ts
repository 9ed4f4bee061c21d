/** From the form to a request, and from an earlier job's input to the form. */
import { type Field, type Group, type Value, FIELDS, PRESETS, fieldsOf } from "../../api/parameters";
import { texts } from "../../texts";
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
  /** Where the results go; with nothing in it, nowhere. */
  bucket: Texts;
  /** An address; empty: none. */
  webhook: string;
  webhookEvents: readonly WebhookEvent[];
  policy: Texts;
}

export const WEBHOOK_EVENTS = ["start", "output", "completed"] as const;
export type WebhookEvent = (typeof WEBHOOK_EVENTS)[number];

export type Train = Readonly<Record<string, Value>>;
export interface Request {
  input: { train: Train; inference?: readonly Readonly<Record<string, Value>>[] };
  s3Config?: Readonly<Record<string, Value>>;
  webhook?: string;
  webhook_events_filter?: readonly WebhookEvent[];
  policy?: Readonly<Record<string, Value>>;
}

export const EMPTY: Form = {
  preset: "", train: {}, validation: null, samplePrompts: "", images: [], bucket: {}, webhook: "", webhookEvents: ["completed"], policy: {},
};

/** The request of a form; what has mistakes is left out of it. */
export function requestOf(form: Form, dataUrl: string): Request {
  const train = { data_url: dataUrl, ...trainOf(form) };
  const images = drawn(form).map((image) => ({ prompt: image.prompt!, ...valuesOf("inference", image) }));
  const [bucket, policy] = [valuesOf("s3Config", form.bucket), valuesOf("policy", form.policy)];
  const webhook = WEB_ADDRESS.test(form.webhook.trim()) ? form.webhook.trim() : "";
  return {
    input: { train, ...(images.length > 0 && { inference: images }) },
    ...(isFilled(bucket) && { s3Config: bucket }),
    ...(webhook && { webhook }),
    ...(webhook && String(form.webhookEvents) !== String(EMPTY.webhookEvents) && { webhook_events_filter: form.webhookEvents }),
    ...(isFilled(policy) && { policy }),
  };
}

const WEB_ADDRESS = /^https?:\/\/[^\s/?#]+([/?#]\S*)?$/i;

const isFilled = (values: object): boolean => Object.keys(values).length > 0;

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

function valuesOf(group: Group, given: Texts): Record<string, Value> {
  const values: Record<string, Value> = {};
  for (const [field, text] of typedFields(group, given)) {
    const result = typed(field, text);
    if ("value" in result) values[field.name] = result.value;
  }
  return values;
}

function typedFields(group: Group, given: Texts): [Field, string][] {
  return fieldsOf(group).flatMap((field) => {
    const text = given[field.name];
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
    ...mistakesIn("s3Config", "s3Config", form.bucket),
    ...missingIn(form.bucket),
    ...mistakesIn("policy", "policy", form.policy),
    ...mistakesInWebhook(form),
  ]);
}

/** Of a bucket all that is required must be there, or nothing at all. */
function missingIn(bucket: Texts): [string, string][] {
  const has = (name: string) => Boolean(bucket[name]?.trim());
  if (!Object.keys(bucket).some(has)) return [];
  return fieldsOf("s3Config")
    .filter((field) => field.required && !has(field.name))
    .map((field) => [`s3Config.${field.name}`, texts.newJob.bucketIncomplete]);
}

function mistakesInWebhook({ webhook, webhookEvents }: Form): [string, string][] {
  if (!webhook.trim()) return [];
  const { expected, formats } = texts.newJob;
  return [
    ...(WEB_ADDRESS.test(webhook.trim()) ? [] : [["webhook", expected(formats.webhook!)] as [string, string]]),
    ...(webhookEvents.length ? [] : [["webhook_events_filter", texts.newJob.noWebhookEvent] as [string, string]]),
  ];
}

function mistakesIn(group: Group, path: string, given: Texts): [string, string][] {
  return typedFields(group, given).flatMap(([field, text]) => {
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
    const [, path, text] = /^((?:input|s3Config|policy)\.[\w.[\]]+|webhook|webhook_events_filter): (.+)$/s.exec(mistake) ?? [];
    if (path && text && isOfForm(path)) byPath[path] = text[0]!.toUpperCase() + text.slice(1);
    else others.push(mistake);
  }
  return { byPath, others };
}

function isOfForm(path: string): boolean {
  if (path.startsWith("webhook")) return true;
  const parts = /^(?:input\.)?(train|train\.validation|inference\[\d+\]|s3Config|policy)\.(\w+)$/.exec(path);
  const [, parent, name] = parts ?? [];
  return name !== "data_url" && name !== "validation" && FIELDS.some((field) => field.name === name && belongs(field.group, parent));
}

function belongs(group: Group, parent: string | undefined): boolean {
  if (group === "inference") return parent?.startsWith("inference") ?? false;
  if (group === "s3Config" || group === "policy") return parent === group;
  return group === "validation" ? parent === "train.validation" : parent === "train";
}

/** Of mistakes in an earlier form those whose field is as it was. */
export function remaining(byPath: Mistakes, before: Form, form: Form): Mistakes {
  return Object.fromEntries(Object.entries(byPath).filter(([path]) => textAt(before, path) === textAt(form, path)));
}

function textAt(form: Form, path: string): string | undefined {
  if (path === "webhook") return form.webhook;
  if (path === "webhook_events_filter") return form.webhookEvents.join();
  const [, parent, place, name = ""] = /^(?:input\.)?(train|train\.validation|inference\[(\d+)\]|s3Config|policy)\.(\w+)$/.exec(path) ?? [];
  if (parent === "s3Config") return form.bucket[name];
  if (parent === "policy") return form.policy[name];
  if (name === "sample_prompts") return form.samplePrompts;
  if (place !== undefined) return drawn(form)[Number(place)]?.[name];
  return parent === "train" ? form.train[name] : form.validation?.[name];
}

interface Input {
  train?: Train | null;
  inference?: unknown;
}

/** The form that makes an earlier job's input; its bucket, webhook and limits no answer tells. */
export function formOf(input: Input): Form {
  const train = input.train ?? {};
  const entries = [input.inference ?? []].flat() as Record<string, Value>[];
  const validation = train.validation as Record<string, Value> | null | undefined;
  const preset = Object.keys(PRESETS).find((name) => isSetBy(name, train)) ?? "";
  const own = Object.entries(train).filter(([name]) => !Object.hasOwn(presetOf(preset), name));
  return {
    ...EMPTY,
    preset,
    train: { ...textsOf("train", Object.fromEntries(own)), ...textsOf("beyond", Object.fromEntries(own)) },
    validation: validation ? textsOf("validation", validation) : null,
    samplePrompts: ((train.sample_prompts ?? []) as string[]).map((prompt) => prompt.replaceAll("\n", " ")).join("\n"),
    images: entries.map((entry) => ({ prompt: textOf(entry.prompt ?? ""), ...textsOf("inference", entry) })),
  };
}

/** Whether a job has all that a preset sets: answers tell of the values alone. */
const isSetBy = (preset: string, train: Train): boolean =>
  Object.entries(presetOf(preset)).every(([name, value]) => textOf(train[name] ?? null) === textOf(value));

/** What differs from its default. */
function textsOf(group: Group, values: Record<string, Value>): Texts {
  return Object.fromEntries(
    fieldsOf(group).flatMap((field) => {
      const value = values[field.name];
      return value == null || textOf(value) === textOf(field.default) ? [] : [[field.name, textOf(value)]];
    }),
  );
}
