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
    tellProblem(error);
    return false;
  }
}

/** Say why something failed, unless the page says it already by asking to sign in. */
export function tellProblem(error: unknown): void {
  const failure = error instanceof Failure ? error : undefined;
  if (failure?.status === 401) return;
  tell(failure?.mistakes.length ? failure.mistakes.join("\n") : (error as Error).message, { isProblem: true });
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
