/** Where the results go, who is told, and how long the job may take. */
import { fieldsOf } from "../../api/parameters";
import { form, mistakes } from "../../state/new-job";
import { type Form, type Texts, WEBHOOK_EVENTS, type WebhookEvent } from "../../state/new-job/request";
import { texts } from "../../texts";
import { Field } from "./field";

const words = texts.newJob;

const change = (changes: Partial<Form>): void => {
  form.value = { ...form.value, ...changes };
};

export function Delivery() {
  const { bucket, policy, webhook } = form.value;
  const set = [...Object.values(bucket), ...Object.values(policy), webhook].filter(Boolean).length;
  return (
    <details class="all">
      <summary>
        {words.delivery}
        {set > 0 && <span class="hint">{` · ${words.changed(set)}`}</span>}
      </summary>
      <section>
        <h3>{words.bucket}</h3>
        <p class="hint">{words.bucketHint}</p>
        <Group name="s3Config" given={bucket} set={(changed) => change({ bucket: changed })} />
      </section>
      <section>
        <h3>{words.webhook}</h3>
        <Webhook />
      </section>
      <section>
        <h3>{words.limits}</h3>
        <Group name="policy" given={policy} set={(changed) => change({ policy: changed })} />
      </section>
    </details>
  );
}

function Group({ name, given, set }: { name: "s3Config" | "policy"; given: Texts; set: (changed: Texts) => void }) {
  return (
    <div class="parameters">
      {fieldsOf(name).map((field) => {
        const path = `${name}.${field.name}`;
        return (
          <Field
            key={field.name} field={field} path={path} text={given[field.name] ?? ""} mistake={mistakes.value[path]}
            set={(text) => set({ ...given, [field.name]: text })}
          />
        );
      })}
    </div>
  );
}

function Webhook() {
  const { webhook, webhookEvents } = form.value;
  const mistake = mistakes.value.webhook;
  const toggle = (event: WebhookEvent) =>
    change({ webhookEvents: WEBHOOK_EVENTS.filter((each) => (each === event) !== webhookEvents.includes(each)) });
  return (
    <div class="parameters">
      <div class={webhook ? "parameter changed" : "parameter"}>
        <label for="webhook">{words.webhookUrl}</label>
        <input
          id="webhook" type="url" value={webhook} placeholder={words.webhookExample} spellcheck={false} autocomplete="off"
          aria-describedby="webhook-help webhook-mistake" aria-invalid={mistake !== undefined}
          onInput={(event) => change({ webhook: event.currentTarget.value })}
        />
        <p class="problem-text" id="webhook-mistake" role="alert">{mistake ?? ""}</p>
        <p class="hint" id="webhook-help">{words.webhookHint}</p>
      </div>
      <fieldset class="choices" disabled={!webhook.trim()}>
        <legend>{words.webhookEvents}</legend>
        {WEBHOOK_EVENTS.map((event) => (
          <label key={event} class="check">
            <input
              type="checkbox" checked={webhookEvents.includes(event)} aria-invalid={mistakes.value.webhook_events_filter !== undefined}
              onChange={() => toggle(event)}
            />
            <span>{words.webhookEvent[event]}</span>
          </label>
        ))}
        <p class="problem-text" role="alert">{mistakes.value.webhook_events_filter ?? ""}</p>
      </fieldset>
    </div>
  );
}
