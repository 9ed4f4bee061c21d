import type { List } from "../state/list";
import { texts } from "../texts";
import { Unread } from "./unread";

/** The end of a list: the button that reads on, or what went wrong with it. */
export function More({ list: { isBusy, hasMore, problem, more } }: { list: List<unknown> }) {
  if (problem.value) return <Unread problem={problem.value} again={more} isBusy={isBusy.value} />;
  if (!hasMore.value) return null;
  return (
    <button class="more" aria-disabled={isBusy.value} onClick={() => void more()}>
      {isBusy.value ? texts.picture.reading : texts.jobs.more}
    </button>
  );
}
