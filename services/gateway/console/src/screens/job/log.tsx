import type { JobEvent } from "../../state/job";
import { count } from "../../format";
import { texts } from "../../texts";

export function Log({ events }: { events: readonly JobEvent[] }) {
  if (!events.length) return null;
  return (
    <details class="card">
      <summary>{texts.job.log}</summary>
      <ol class="log" tabIndex={0}>
        {events.map((event) => (
          <li key={event.id}>
            <code>{event.type}</code> {said(event)}
          </li>
        ))}
      </ol>
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
