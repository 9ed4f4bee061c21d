import type { JobEvent } from "../../state/job";
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
      return [data.status, data.error].filter(Boolean).join(": ");
    case "stage":
      return [data.stage, data.state, data.reason].filter(Boolean).join(" · ");
    case "sample":
    case "checkpoint":
      return [`step ${data.step}`, data.prompt ?? data.name].filter(Boolean).join(" · ");
    case "image":
      return data.prompt;
    default:
      return "";
  }
}
