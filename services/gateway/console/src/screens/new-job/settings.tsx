import { useState } from "preact/hooks";
import { type Field as Parameter, PRESETS, fieldNamed, fieldsOf } from "../../api/parameters";
import { form, mistakes } from "../../state/new-job";
import { texts } from "../../texts";
import { Delivery } from "./delivery";
import { Field } from "./field";
import { found, textOf } from "../../state/new-job/fields";
import { Images } from "./images";
import type { Form } from "../../state/new-job/request";

const words = texts.newJob;

/** They have a place above the others. */
const MAIN = ["max_epochs", "resolution", "batch_size", "lr", "resume_ckpt_url"];

const change = (changes: Partial<Form>): void => {
  form.value = { ...form.value, ...changes };
};

export function Settings() {
  return (
    <section class="card settings" aria-labelledby="settings">
      <h2 id="settings">{words.settings}</h2>
      <Presets />
      <h3>{words.main}</h3>
      <div class="parameters">{MAIN.map((name) => <TrainField key={name} field={fieldNamed("train", name)} />)}</div>
      <Samples />
      <Images />
      <All />
      <Delivery />
    </section>
  );
}

function Presets() {
  const names = ["", ...Object.keys(PRESETS)];
  return (
    <fieldset class="presets">
      <legend>{words.preset}</legend>
      {names.map((name) => (
        <label key={name} class="preset">
          <input type="radio" name="preset" checked={form.value.preset === name} onChange={() => change({ preset: name })} />
          <span class="what">
            <strong>{name ? (words.presets[name] ?? name) : words.noPreset}</strong>
            {name ? <Sets preset={name} /> : <span class="hint">{words.noPresetHint} {words.makesModel}</span>}
          </span>
        </label>
      ))}
    </fieldset>
  );
}

function Sets({ preset }: { preset: string }) {
  return (
    <ul class="hint">
      <li>{PRESETS[preset]!.lora_rank ? words.makesLora : words.makesModel}</li>
      {Object.entries(PRESETS[preset]!).map(([name, { value, why, source }]) => (
        <li key={name} title={source}>
          <code>{`${name} ${textOf(value)}`}</code> {why}
        </li>
      ))}
    </ul>
  );
}

function Samples() {
  const path = "input.train.sample_prompts";
  const mistake = mistakes.value[path];
  return (
    <div class="parameter wide">
      <label for="sample-prompts">{words.samplePrompts}</label>
      <textarea dir="auto"
        id="sample-prompts" rows={3} value={form.value.samplePrompts} aria-describedby="sample-prompts-help" aria-invalid={mistake !== undefined}
        onInput={(event) => change({ samplePrompts: event.currentTarget.value })}
      />
      <p class="problem-text" role="alert">{mistake ?? ""}</p>
      <p class="hint" id="sample-prompts-help">{words.samplePromptsHint}</p>
    </div>
  );
}

/** What belongs together, the most used first; whatever is not named comes at the end. */
const TOPICS = {
  lora: ["lora_rank", "lora_alpha", "lora_conv_rank", "lora_merge"],
  learning: [
    "optimizer", "useadam8bit", "text_encoder_lr", "lr_scheduler", "lr_warmup_steps", "lr_decay_steps", "scale_lr", "grad_accum",
    "clip_grad_norm", "ema_decay_rate",
  ],
  pictures: [
    "flip_p", "cond_dropout", "shuffle_tags", "keep_tags", "crops_per_image", "rated_dataset", "rated_dataset_target_dropout_percent",
  ],
  loss: [
    "masked_loss", "unmasked_weight", "loss_type", "min_snr_gamma", "timestep_start", "timestep_end", "zero_frequency_noise_ratio",
    "pyramid_noise_discount", "enable_zero_terminal_snr",
  ],
  saving: [
    "sample_steps", "save_every_n_epochs", "ckpt_every_n_minutes", "keep_checkpoints", "checkpoint_format", "save_full_precision",
    "save_optimizer",
  ],
  model: ["clip_skip", "disable_unet_training", "disable_textenc_training", "hf_repo_subfolder"],
};
type Topic = keyof typeof TOPICS | "others";

function topicsOf(fields: readonly Parameter[]): [Topic, Parameter[]][] {
  const known = Object.entries(TOPICS).map(([topic, names]): [Topic, Parameter[]] => [
    topic as Topic, names.flatMap((name) => fields.find((field) => field.name === name) ?? []),
  ]);
  const others = fields.filter((field) => !Object.values(TOPICS).flat().includes(field.name));
  return [...known, ["others", others]];
}

/** Every other parameter, by topic, found by its name. */
function All() {
  const [search, setSearch] = useState("");
  const others = fieldsOf("train", "beyond").filter((field) => !MAIN.includes(field.name));
  const topics = topicsOf(found(others, search)).filter(([, fields]) => fields.length > 0);
  const validation = found(fieldsOf("validation"), search);
  const number = others.length + fieldsOf("validation").length;
  const set = others.filter((field) => form.value.train[field.name]).length;
  return (
    <details class="all">
      <summary>
        {words.allSettings(number)}
        {set > 0 && <span class="hint">{` · ${words.changed(set)}`}</span>}
      </summary>
      <input
        type="search" aria-label={words.search} placeholder={words.search} value={search}
        onInput={(event) => setSearch(event.currentTarget.value)}
      />
      {topics.map(([topic, fields]) => (
        <section key={topic}>
          <h3>{words.topics[topic]}</h3>
          <div class="parameters">{fields.map((field) => <TrainField key={field.name} field={field} />)}</div>
        </section>
      ))}
      {validation.length > 0 && <Validation fields={validation} />}
      <p class="hint" role="status">{validation.length + topics.length ? "" : words.noneFound}</p>
    </details>
  );
}

function TrainField({ field }: { field: Parameter }) {
  const { train, preset } = form.value;
  const path = `input.train.${field.name}`;
  const byPreset = PRESETS[preset]?.[field.name];
  return (
    <Field
      field={field} path={path} text={train[field.name] ?? ""} mistake={mistakes.value[path]}
      preset={byPreset && textOf(byPreset.value)}
      set={(text) => change({ train: { ...train, [field.name]: text } })}
    />
  );
}

function Validation({ fields }: { fields: readonly Parameter[] }) {
  const { validation } = form.value;
  return (
    <section>
      <h3>{words.topics.validation}</h3>
      <label class="check">
        <input type="checkbox" checked={validation !== null} onChange={(event) => change({ validation: event.currentTarget.checked ? {} : null })} />
        <span>{words.validate}</span>
      </label>
      {validation && (
        <div class="parameters">
          {fields.map((field) => {
            const path = `input.train.validation.${field.name}`;
            return (
              <Field
                key={field.name} field={field} path={path} text={validation[field.name] ?? ""} mistake={mistakes.value[path]}
                set={(text) => change({ validation: { ...validation, [field.name]: text } })}
              />
            );
          })}
        </div>
      )}
    </section>
  );
}
