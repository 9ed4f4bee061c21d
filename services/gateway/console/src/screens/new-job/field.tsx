import type { ComponentChildren } from "preact";
import type { Field as Parameter } from "../../api/parameters";
import { texts } from "../../texts";
import { labelOf, rangeOf, textOf } from "./fields";

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
        {field.kind !== "choice" && field.kind !== "boolean" && <span>{` · ${rangeOf(field)}`}</span>}
      </p>
    </div>
  );
}

function defaultText(field: Parameter, preset: string | undefined): string {
  if (preset !== undefined) return words.byPreset(shownValue(preset));
  return field.default === null ? words.noDefault : words.default(shownValue(textOf(field.default)));
}

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
        {choices.map((choice) => <option key={choice} value={choice}>{shownValue(choice)}</option>)}
      </select>
    );
  }
  const isNumber = field.kind === "integer" || field.kind === "number";
  return (
    <input
      id={id} type="text" value={text} placeholder={stands} spellcheck={false} autocomplete="off" {...described}
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
