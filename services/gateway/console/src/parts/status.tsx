import type { Status } from "../api/types";
import { texts } from "../texts";

/** A job's status: a colour, and the word for it. */
export function StatusLabel({ status }: { status: Status }) {
  return <span class={`status ${status.toLowerCase()}`}>{texts.status[status]}</span>;
}

interface BarProps {
  label: string;
  /** From 0 to 1; undefined: not known. */
  share: number | undefined;
}

export function Bar({ label, share }: BarProps) {
  return <progress class="bar-of-progress" aria-label={label} max={1} {...(share === undefined ? {} : { value: share })} />;
}
