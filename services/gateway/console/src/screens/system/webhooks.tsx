import type { GivenUpWebhook } from "../../api/types";
import { moment } from "../../format";
import { attempt, tell } from "../../parts/notices";
import { type Paged, moreWebhooks, resendWebhook } from "../../state/system";
import { texts } from "../../texts";

const words = texts.system.webhooks;

export function Webhooks({ webhooks }: { webhooks: Paged<GivenUpWebhook> }) {
  const resend = async (webhook: GivenUpWebhook) => {
    if (await attempt(() => resendWebhook(webhook))) tell(words.sent);
  };
  return (
    <section class="card">
      <h2>{words.title}</h2>
      {webhooks.items.length === 0 ? (
        <p class="none">{words.none}</p>
      ) : (
        <ul class="entries">
          {webhooks.items.map((each) => (
            <li key={each.webhook}>
              <div class="what">
                <p class="name">{each.host ?? texts.system.unknown}</p>
                <p class="problem-text">{each.reason}</p>
                <p class="hint">{`${words.events[each.event]} · ${words.attempts(each.attempts)} · ${moment(each.at)}`}</p>
                <p class="id">{texts.system.deadLetters.job(each.job)}</p>
              </div>
              <div class="actions">
                <button aria-label={words.resendName(each.host ?? each.job)} onClick={() => void resend(each)}>
                  {words.resend}
                </button>
              </div>
            </li>
          ))}
        </ul>
      )}
      {webhooks.next && <button class="more" onClick={() => void attempt(moreWebhooks)}>{texts.jobs.more}</button>}
    </section>
  );
}
