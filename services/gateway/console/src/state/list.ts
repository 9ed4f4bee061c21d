/** A list that is read page by page. */
import { type ReadonlySignal, type Signal, computed, signal } from "@preact/signals";

export interface List<T> {
  items: Signal<readonly T[]>;
  isBusy: Signal<boolean>;
  hasMore: Signal<boolean>;
  /** Whether all of it was read, and nothing is there. */
  isEmpty: ReadonlySignal<boolean>;
  problem: Signal<Error | undefined>;
  more: () => Promise<void>;
}

interface Page<T> {
  items: readonly T[];
  next: string | null;
}

/** One look goes on until it has found so much, or has read so many pages. */
const ENOUGH = 10;
const LONGEST_LOOK = 5;

/** @param readPage reads the page at a cursor, at first without one; what it leaves out of it is not listed. */
export function listOf<T>(readPage: (cursor: string | undefined) => Promise<Page<T>>): List<T> {
  const items = signal<readonly T[]>([]);
  const isBusy = signal(false);
  const hasMore = signal(true);
  const problem = signal<Error | undefined>();
  const isEmpty = computed(() => items.value.length === 0 && !hasMore.value);
  let cursor: string | undefined;

  const more = async () => {
    if (isBusy.value) return;
    isBusy.value = true;
    try {
      for (let page = 0, found = 0; page < LONGEST_LOOK && hasMore.value && found < ENOUGH; page++) {
        const read = await readPage(cursor);
        items.value = [...items.value, ...read.items];
        found += read.items.length;
        cursor = read.next ?? undefined;
        hasMore.value = read.next !== null;
      }
      problem.value = undefined;
    } catch (error) {
      problem.value = error as Error;
    } finally {
      isBusy.value = false;
    }
  };
  return { items, isBusy, hasMore, isEmpty, problem, more };
}
