/** Short messages that come and go. */
import { signal } from "@preact/signals";
import { Failure } from "../api/client";

interface Notice {
  id: number;
  text: string;
  isProblem: boolean;
}

const SHOWN_MS = 8000;
const notices = signal<readonly Notice[]>([]);
let lastId = 0;

export function tell(text: string, { isProblem = false } = {}): void {
  const notice = { id: ++lastId, text, isProblem };
  notices.value = [...notices.value, notice];
  window.setTimeout(() => {
    notices.value = notices.value.filter((each) => each !== notice);
  }, SHOWN_MS);
}

/** Run what a button does, and say why if it fails. */
export async function attempt(action: () => Promise<unknown>): Promise<boolean> {
  try {
    await action();
    return true;
  } catch (error) {
    const mistakes = error instanceof Failure ? error.mistakes : [];
    tell(mistakes.length ? mistakes.join("\n") : (error as Error).message, { isProblem: true });
    return false;
  }
}

export function Notices() {
  return (
    <div class="notices" role="status" aria-live="polite">
      {notices.value.map((notice) => (
        <p key={notice.id} class={notice.isProblem ? "notice problem" : "notice"}>{notice.text}</p>
      ))}
    </div>
  );
}
