// Makes src/api/parameters.json: what docs/openapi.json checks of each parameter of a training, and what
// docs/parameters.md says of it. The project's tests compare that page with the code.
import { readFileSync, writeFileSync } from "node:fs";

const DOCS = new URL("../../../docs/", import.meta.url);
const MADE = new URL("./src/api/parameters.json", import.meta.url);
/** The page's sections: the schema of its fields, and what the console calls the group. */
const SECTIONS = {
  "`input.train`, as the endpoint's page has it": ["RequestTrain", "train"],
  "`input.train`, beyond the page": ["RequestTrain", "beyond"],
  "`input.train.validation`": ["RequestValidation", "validation"],
  "`input.inference`": ["RequestInference", "inference"],
  "`s3Config`": ["RequestS3Config", "s3Config"],
  "`policy`": ["RequestPolicy", "policy"],
};

const page = readFileSync(new URL("parameters.md", DOCS), "utf8");
const { schemas } = JSON.parse(readFileSync(new URL("openapi.json", DOCS), "utf8")).components;

function rowsOf(title) {
  const section = page.split(`# ${title}\n`)[1]?.split(/^#+ /m)[0];
  if (section === undefined) throw new Error(`docs/parameters.md has no section ${title}`);
  return [...section.matchAll(/^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|/gm)];
}

function fieldOf(schema, group, [, name, , range, help]) {
  const described = schemas[schema].properties[name];
  if (!described) throw new Error(`docs/openapi.json has no ${name} in ${schema}`);
  const kind = described.anyOf?.find((each) => each.type !== "null") ?? described;
  return {
    name,
    group,
    kind: kindOf(kind),
    default: described.default ?? null,
    range,
    help: help.replace(/\[([^\]]+)\]\([^)]+\)/g, "$1"),
    ...(schemas[schema].required?.includes(name) && { required: true }),
    ...((kind.pattern ?? described.pattern) && group === "s3Config" && { pattern: kind.pattern ?? described.pattern }),
    ...(kind.enum && { choices: kind.enum.filter((each) => each !== null) }),
    ...limitsOf(kind.items ?? kind),
  };
}

function kindOf({ type, enum: choices, items }) {
  if (choices) return "choice";
  if (items?.type === "number") return "numbers";
  const known = { boolean: "boolean", integer: "integer", number: "number", string: "text" };
  return known[[type].flat().find((each) => each !== "null")] ?? "other";
}

function limitsOf({ minimum, maximum, exclusiveMinimum, exclusiveMaximum }) {
  const limits = { least: minimum, most: maximum, above: exclusiveMinimum, below: exclusiveMaximum };
  return Object.fromEntries(Object.entries(limits).filter(([, limit]) => limit !== undefined));
}

const fields = Object.entries(SECTIONS).flatMap(([title, [schema, group]]) =>
  rowsOf(title).map((row) => fieldOf(schema, group, row)),
);
const made = { fields, presets: schemas.RequestTrain["x-presets"] };
writeFileSync(MADE, JSON.stringify(made, null, 1));
