/** The form's request as other clients send it. */
import { FIELDS, SECRETS, type Value } from "../../api/parameters";
import { type Form, type Request, type Train, ownOf, presetOf, requestOf } from "../../state/new-job/request";

const KEY = "EVERYDREAM_API_KEY";

/** The environment's variable that holds a secret: none stands in a text that is copied, and perhaps kept. */
const VARIABLES: Readonly<Record<string, string>> = { accessId: "BUCKET_ACCESS_ID", accessSecret: "BUCKET_ACCESS_SECRET" };
const MARK = "\u{f0000}";

/** The same request with a mark in place of each secret; what stands for it depends on the language. */
function withMarks<T extends Pick<Request, "s3Config">>(request: T): T {
  if (!request.s3Config) return request;
  const hidden = Object.entries(request.s3Config).map(([name, value]) => [name, SECRETS.includes(name) ? MARK + VARIABLES[name] + MARK : value]);
  return { ...request, s3Config: Object.fromEntries(hidden) };
}

const MARKED = new RegExp(`${MARK}(\\w+)${MARK}`, "gu");

export function curl(request: Request, url: string): string {
  return [
    `curl -X POST ${quoted(`${url}/run`)} \\`,
    `  -H "Authorization: Bearer $${KEY}" \\`,
    "  -H 'Content-Type: application/json' \\",
    `  -d ${quoted(JSON.stringify(withMarks(request), null, 2)).replace(MARKED, `'"$$$1"'`)}`,
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
    `    json=${literal(withMarks(request), 1).replace(new RegExp(`"${MARKED.source}"`, "gu"), 'os.environ["$1"]')},`,
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
  const { input: _input, ...beside } = request;
  if (!flags || Object.keys(beside).length > 0) return withFile(request, undoneIn(request, ofCheck), data, origin);
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
  return { ...Object.fromEntries(said), ...undoneIn(request, ofCheck) };
}

/** What the check was asked for and the request has not any more. */
function undoneIn({ input: { train } }: Request, ofCheck: Train): Train {
  const undone = Object.keys(ofCheck).filter((name) => name !== "data_url" && !(name in train));
  return Object.fromEntries(undone.map((name) => [name, defaultOf(name)] as const));
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

function withFile(request: Request, undone: Train, data: string, origin: string): string {
  const { input: { train, inference }, ...beside } = request;
  const { data_url: _data, ...settings } = train;
  const run = `everydream run ${quoted(data)} --url ${quoted(origin)} --config job.json`;
  const input = { train: { ...settings, ...undone }, ...(inference && { inference }) };
  if (!Object.keys(beside).length) return ["cat > job.json <<'END'", JSON.stringify(input, null, 2), "END", run].join("\n");
  const file = JSON.stringify(withMarks({ input, ...beside }), null, 2);
  if (!request.s3Config) return ["cat > job.json <<'END'", file, "END", run].join("\n");
  // Without quotes the shell fills in the secrets, and would fill in other things.
  const escaped = file.replace(/[\\$`]/g, "\\$&").replace(MARKED, "$$$1");
  return ["(umask 077; cat > job.json) <<END", escaped, "END", run].join("\n");
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
