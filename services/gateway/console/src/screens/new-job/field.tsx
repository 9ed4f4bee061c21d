import type { ComponentChildren } from "preact";
import { type Field as Parameter, SECRETS } from "../../api/parameters";
import { count, duration } from "../../format";
import { texts } from "../../texts";
import { labelOf, rangeOf, textOf } from "../../state/new-job/fields";

const words = texts.newJob;

interface FieldProps {
  field: Parameter;
  /** Of the field in the request. */
  path: string;
  /** Empty: as it is by default. */
  text: string;
  /** What a preset sets. */
  preset?: string | undefined;
  mistake: string | undefined;
  set: (text: string) => void;
}

/** One parameter: its control, its default, and what it does. */
export function Field({ field, path, text, preset, mistake, set }: FieldProps) {
  const id = path.replace(/[^\w]/g, "-");
  const described = { "aria-describedby": `${id}-help ${id}-mistake`, "aria-invalid": mistake !== undefined };
  const stands = preset ?? textOf(field.default);
  return (
    <div class={text ? "parameter changed" : "parameter"}>
      <div class="head">
        <label for={id}>
          {words.names[field.name] ?? labelOf(field.name)}
          {words.names[field.name] && <> <code class="hint">{field.name}</code></>}
        </label>
        {text !== "" && (
          <button type="button" class="quiet small" aria-label={words.resetField(field.name)} onClick={() => set("")}>{words.reset}</button>
        )}
      </div>
      <Control field={field} id={id} text={text} stands={stands} described={described} set={set} />
      <p class="problem-text" id={`${id}-mistake`} role="alert">{mistake ?? ""}</p>
      <p class="hint" id={`${id}-help`}>
        <Help text={field.help} /> <span class="default">{defaultText(field, preset)}</span>
        {(field.kind === "integer" || field.kind === "number") && <span>{` · ${rangeOf(field)}`}</span>}
      </p>
    </div>
  );
}

function defaultText(field: Parameter, preset: string | undefined): string {
  if (preset !== undefined) return words.byPreset(shownValue(preset));
  if (field.required) return words.required;
  return textOf(field.default) === "" ? words.noDefault : words.default(defaultOf(field));
}

/** Limits are milliseconds, of which nobody reads so many. */
const defaultOf = ({ group, kind, default: value }: Parameter): string =>
  group === "policy" && kind === "integer" ? `${count(Number(value))} (${duration(Number(value) / 1000)})` : shownValue(textOf(value));

const shownValue = (text: string): string => (text === "true" ? words.on : text === "false" ? words.off : text);

interface ControlProps {
  field: Parameter;
  id: string;
  text: string;
  /** What counts while nothing is typed. */
  stands: string;
  described: { "aria-describedby": string; "aria-invalid": boolean };
  set: (text: string) => void;
}

function Control({ field, id, text, stands, described, set }: ControlProps) {
  const choices = field.kind === "boolean" ? ["true", "false"] : field.choices?.map(String);
  if (choices) {
    return (
      <select id={id} value={text || stands} {...described} onChange={(event) => set(changed(event.currentTarget.value, stands))}>
        {stands === "" && <option value="">{words.unset}</option>}
        {choices.map((choice) => <option key={choice} value={choice}>{shownValue(choice)}</option>)}
      </select>
    );
  }
  const isSecret = SECRETS.includes(field.name);
  const isNumber = field.kind === "integer" || field.kind === "number";
  return (
    <input
      id={id} type={isSecret ? "password" : "text"} value={text} placeholder={stands} spellcheck={false}
      autocomplete={isSecret ? "new-password" : "off"} {...described}
      {...(isNumber && { inputMode: field.kind === "integer" ? "numeric" as const : "decimal" as const })}
      onInput={(event) => set(event.currentTarget.value)}
    />
  );
}

const changed = (choice: string, stands: string): string => (choice === stands ? "" : choice);

/** Markdown's code, and else plain text. */
function Help({ text }: { text: string }) {
  const parts: ComponentChildren[] = text.split("`").map((part, index) => (index % 2 ? <code key={index}>{part}</code> : part));
  return <>{parts}</>;
}
