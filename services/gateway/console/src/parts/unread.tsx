import { texts } from "../texts";

interface UnreadProps {
  problem: Error;
  again: () => Promise<void>;
  isBusy?: boolean;
}

/** Why something could not be read, and the way to try again. */
export function Unread({ problem, again, isBusy = false }: UnreadProps) {
  return (
    <div class="unread" role="alert">
      <p class="problem-text">{problem.message}</p>
      <button aria-disabled={isBusy} onClick={() => void again()}>{texts.error.again}</button>
    </div>
  );
}
