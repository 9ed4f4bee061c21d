import { useState } from "preact/hooks";
import type { JobEvent } from "../../state/job";
import { count, moment } from "../../format";
import { texts } from "../../texts";

/** So many are shown, the newest, until more are asked for. */
const MOST = 200;

export function Log({ events }: { events: readonly JobEvent[] }) {
  const [isOpen, setOpen] = useState(false);
  const [most, setMost] = useState(MOST);
  if (!events.length) return null;
  const earlier = Math.max(0, events.length - most);
  return (
    <details class="card" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        {texts.job.log} <span class="hint">{count(events.length)}</span>
      </summary>
      {isOpen && earlier > 0 && (
        <button onClick={() => setMost(most + 10 * MOST)}>{texts.job.earlierEvents(count(earlier))}</button>
      )}
      {isOpen && (
        <ol class="log" tabIndex={0} aria-label={texts.job.log}>
          {events.slice(earlier).map((event) => (
            <li key={event.id}>
              {event.data.at && <time class="hint" dateTime={event.data.at}>{moment(event.data.at)}</time>} <code>{event.type}</code> {said(event)}
            </li>
          ))}
        </ol>
      )}
    </details>
  );
}

function said({ type, data }: JobEvent): string {
  switch (type) {
    case "status":
      return [texts.status[data.status], data.error].filter(Boolean).join(": ");
    case "stage":
      return [texts.stage[data.stage], data.state, data.reason].filter(Boolean).join(" · ");
    case "sample":
      return [stepAt(data.step), data.prompt].join(" · ");
    case "checkpoint":
    case "checkpoint_deleted":
      return [stepAt(data.step), data.name].filter(Boolean).join(" · ");
    case "image":
      return [data.prompt, data.error].filter(Boolean).join(": ");
    default:
      return "";
  }
}

const stepAt = (step: number | null): string => (step === null ? "" : texts.job.stepRow(count(step)));
