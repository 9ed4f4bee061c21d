import type { List } from "../state/list";
import { texts } from "../texts";

/** The end of a list: what went wrong with it, and the button that reads on. */
export function More({ list: { isBusy, hasMore, problem, more } }: { list: List<unknown> }) {
  return (
    <>
      <p class="problem" role="alert">{problem.value?.message}</p>
      {hasMore.value && (
        <button class="more" aria-disabled={isBusy.value} onClick={() => void more()}>
          {isBusy.value ? texts.picture.reading : problem.value ? texts.error.again : texts.jobs.more}
        </button>
      )}
    </>
  );
}
