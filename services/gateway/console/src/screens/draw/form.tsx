import { type Signal, useSignal } from "@preact/signals";
import type { ComponentChildren, JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { Failure, api, isSignedOut, result } from "../../api/client";
import { count } from "../../format";
import { modelInputOf } from "../../state/pictures";
import { texts } from "../../texts";
import { type Mistakes, mistakesOf } from "./mistakes";
import { ModelChoice, type Models, modelFor, useIsLora } from "./models";
import { type Field, SEED, type Settings, WEIGHT, WEIGHTS, choicesOf, entryOf, rangeOf } from "./settings";
import { type Taking, TakingPanel } from "./taking";

const words = texts.draw;
const NONE: Mistakes = { fields: {}, others: [] };

interface FormProps {
  settings: Signal<Settings>;
  model: Signal<string | null>;
  models: Models;
  taking: Taking;
  onSent: (id: string) => Promise<void>;
}

export function Form({ settings, model, models, taking, onSent }: FormProps) {
  const form = useRef<HTMLFormElement>(null);
  const chosen = modelFor(models, model.value);
  const withLora = useIsLora(chosen);
  // Weights are those of one model's LoRAs.
  const choose = (id: string) => {
    model.value = id;
    settings.value = { ...settings.value, loras: "" };
  };
  const isList = Array.isArray(modelInputOf(chosen).model);
  const mistakes = useSignal(NONE);
  const isBusy = useSignal(false);

  const send = async (event: SubmitEvent) => {
    event.preventDefault();
    if (isBusy.value) return;
    isBusy.value = true;
    mistakes.value = NONE;
    try {
      const input = { ...modelInputOf(chosen), inference: [entryOf(settings.value)] };
      await onSent((await result(api.POST("/run", { body: { input } as never }))).id);
    } catch (error) {
      if (isSignedOut.value) return;
      const said = error instanceof Failure && error.mistakes.length ? error.mistakes : [(error as Error).message];
      mistakes.value = mistakesOf(said);
    } finally {
      isBusy.value = false;
    }
  };
  useEffect(() => form.current?.querySelector<HTMLElement>('[aria-invalid="true"]')?.focus(), [mistakes.value]);

  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.current?.requestSubmit();
  };
  const part = { settings, mistakes };
  return (
    <form ref={form} class="card draw-form" onSubmit={(event) => void send(event)} onKeyDown={onKeyDown}>
      <ModelChoice models={models} chosen={chosen} choose={choose} withLora={withLora} mistake={mistakes.value.fields.model} />
      <Prompt {...part} field="prompt" rows={3} />
      <Prompt {...part} field="negative_prompt" rows={1} />
      <div class="fields">
        <Choice {...part} field="width" />
        <Choice {...part} field="height" />
        <Amount {...part} field="num_outputs" step="1" />
        <Amount {...part} field="num_inference_steps" step="1" />
        <Amount {...part} field="guidance_scale" step="any" />
        <Choice {...part} field="scheduler" />
      </div>
      <Control {...part} field="seed" hint={words.seedHint}>
        {(control) => <input {...control} inputMode="numeric" pattern={SEED} title={words.seedRule} autocomplete="off" placeholder={words.random} />}
      </Control>
      {(settings.value.loras !== "" || withLora || isList) && (
        <Control {...part} field="loras" {...(withLora ? { label: words.weight, hint: words.weightHint } : { hint: words.lorasHint })}>
          {(control) => <input {...control} pattern={withLora ? WEIGHT : WEIGHTS} title={withLora ? words.weightRule : words.lorasRule} autocomplete="off" placeholder={withLora ? "1" : words.lorasDefault} />}
        </Control>
      )}
      <div class="problem" role="alert">
        {mistakes.value.others.map((text) => <p key={text}>{text}</p>)}
      </div>
      <button class="main" disabled={isBusy.value}>{words.submit}</button>
      <TakingPanel {...taking} />
    </form>
  );
}

interface Part {
  settings: Signal<Settings>;
  mistakes: Signal<Mistakes>;
  field: Field;
}

type ControlProps = Pick<JSX.HTMLAttributes<HTMLElement>, "id" | "aria-describedby" | "aria-invalid"> & {
  value: string;
  onInput: (event: { currentTarget: { value: string } }) => void;
};

interface ControlParts extends Part {
  label?: string;
  hint?: string;
  children: (control: ControlProps) => ComponentChildren;
}

/** A label, its control, and what is wrong with it. */
function Control({ settings, mistakes, field, label = words.fields[field], hint, children }: ControlParts) {
  const id = `draw-${field}`;
  const mistake = mistakes.value.fields[field];
  const control: ControlProps = {
    id,
    value: settings.value[field],
    onInput: (event) => void (settings.value = { ...settings.value, [field]: event.currentTarget.value }),
    "aria-describedby": `${id}-hint ${id}-problem`,
    "aria-invalid": mistake !== undefined,
  };
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {children(control)}
      <p id={`${id}-hint`} class="hint">{hint}</p>
      <p id={`${id}-problem`} class="problem">{mistake}</p>
    </div>
  );
}

function Prompt({ rows, ...part }: Part & { rows: number }) {
  return <Control {...part}>{(control) => <textarea dir="auto" {...control} rows={rows} />}</Control>;
}

function Choice(part: Part) {
  return (
    <Control {...part}>
      {(control) => (
        <select {...control}>
          {choicesOf(part.field).map((value) => <option key={value} value={value}>{value}</option>)}
        </select>
      )}
    </Control>
  );
}

function Amount({ step, ...part }: Part & { step: string }) {
  const { min, max } = rangeOf(part.field);
  return (
    <Control {...part} hint={words.range(count(min), count(max))}>
      {(control) => <input {...control} type="number" min={min} max={max} step={step} required />}
    </Control>
  );
}
