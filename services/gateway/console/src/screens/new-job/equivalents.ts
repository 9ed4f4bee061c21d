/** The form's request as other clients send it. */
import { FIELDS, type Value } from "../../api/parameters";
import { type Form, type Request, type Train, ownOf, presetOf, requestOf } from "./request";

const KEY = "EVERYDREAM_API_KEY";

export function curl(request: Request, url: string): string {
  return [
    `curl -X POST ${quoted(`${url}/run`)} \\`,
    `  -H "Authorization: Bearer $${KEY}" \\`,
    "  -H 'Content-Type: application/json' \\",
    `  -d ${quoted(JSON.stringify(request, null, 2))}`,
  ].join("\n");
}

export function python(request: Request, url: string): string {
  return [
    "import os",
    "",
    "import requests",
    "",
    "answer = requests.post(",
    `    ${JSON.stringify(`${url}/run`)},`,
    `    headers={"Authorization": f"Bearer {os.environ['${KEY}']}"},`,
    `    json=${literal(request, 1)},`,
    "    timeout=60,",
    ")",
    "answer.raise_for_status()",
    'print(answer.json()["id"])',
  ].join("\n");
}

/**
 * The line for the command.
 *
 * @param data what it is given: a folder, a URL, or a check's id.
 * @param origin of the server.
 * @param ofCheck what the check was asked for, which the command takes over where nothing else is said.
 */
export function commandLine(form: Form, data: string, origin: string, ofCheck: Train = {}): string {
  const request = requestOf(form, data);
  const images = request.input.inference ?? [];
  const flags = drawingFlags(images);
  if (!flags) return withFile(request, data, origin);
  const parts = [
    `everydream run ${quoted(data)} --url ${quoted(origin)}`,
    ...(form.preset ? [`--preset ${form.preset}`] : []),
    ...Object.entries(settingsOf(form, request, ofCheck)).map(([name, value]) => `--set ${quoted(`${name}=${shown(value)}`)}`),
    ...flags,
  ];
  return parts.join(" \\\n  ");
}

/** What must be said: all but what the preset says, and the check's that the form has at its default. */
function settingsOf(form: Form, request: Request, ofCheck: Train): Train {
  const { data_url: _data, ...train } = request.input.train;
  const [own, preset] = [ownOf(form), presetOf(form.preset)];
  const said = Object.entries(train).filter(([name]) => name in own || !(name in preset));
  const undone = Object.keys(ofCheck).filter((name) => name !== "data_url" && !(name in train));
  return Object.fromEntries([...said, ...undone.map((name) => [name, defaultOf(name)] as const)]);
}

const defaultOf = (name: string): Value => FIELDS.find((field) => field.group !== "inference" && field.name === name)?.default ?? null;

const FLAGS: Readonly<Record<string, string>> = {
  negative_prompt: "--negative",
  num_outputs: "--count",
  num_inference_steps: "--steps",
  guidance_scale: "--guidance",
  scheduler: "--scheduler",
  seed: "--seed",
};
const SIDES = ["width", "height"];

/** null: the command's flags, which count for all prompts, cannot say it. */
function drawingFlags(images: NonNullable<Request["input"]["inference"]>): string[] | null {
  const settings = images.map(({ prompt: _prompt, ...others }) => others);
  const [first] = settings;
  if (!first) return [];
  const isOneForAll = settings.every((each) => JSON.stringify(each) === JSON.stringify(first));
  const isSayable = Object.keys(first).every((name) => name in FLAGS || SIDES.includes(name));
  if (!isOneForAll || !isSayable) return null;
  const flags = Object.entries(first).flatMap(([name, value]) => (FLAGS[name] ? [`${FLAGS[name]} ${quoted(String(value))}`] : []));
  const hasSize = SIDES.some((side) => side in first);
  const size = hasSize ? [`--size ${first.width ?? 512}x${first.height ?? 512}`] : [];
  return [...images.map((image) => `--prompt ${quoted(String(image.prompt))}`), ...size, ...flags];
}

function withFile(request: Request, data: string, origin: string): string {
  const { train, inference } = request.input;
  const { data_url: _data, ...settings } = train;
  const file = JSON.stringify({ train: settings, inference }, null, 2);
  return [
    "cat > job.json <<'END'", file, "END",
    `everydream run ${quoted(data)} --url ${quoted(origin)} --config job.json`,
  ].join("\n");
}

/** As `--set` reads it: JSON, or a plain text that is no JSON. */
function shown(value: Value): string {
  if (typeof value !== "string") return JSON.stringify(value);
  try {
    JSON.parse(value);
  } catch {
    return value;
  }
  return JSON.stringify(value);
}

/** For a POSIX shell. */
function quoted(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** A value as Python writes it. */
function literal(value: unknown, depth: number): string {
  const [inner, outer] = ["    ".repeat(depth + 1), "    ".repeat(depth)];
  const block = (open: string, items: string[], close: string) =>
    items.length ? `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${outer}${close}` : open + close;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return block("[", value.map((each) => literal(each, depth + 1)), "]");
  if (typeof value === "object") {
    return block("{", Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each, depth + 1)}`), "}");
  }
  return JSON.stringify(value);
}
