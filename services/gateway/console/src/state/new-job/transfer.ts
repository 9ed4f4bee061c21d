/** How fast an upload gets on. */

export interface Mark {
  /** In milliseconds. */
  at: number;
  sent: number;
}

/** The time that a rate is the mean of: a browser tells of progress in bursts. */
const WINDOW_MS = 10_000;

/** The marks that still count, with the newest. */
export const marked = (marks: readonly Mark[], now: Mark): Mark[] => [
  ...marks.filter((mark) => now.at - mark.at <= WINDOW_MS && mark.sent <= now.sent),
  now,
];

/** Bytes a second; undefined: not known yet. */
export function rateOf(marks: readonly Mark[]): number | undefined {
  const [first, last] = [marks[0], marks.at(-1)];
  if (!first || !last || last.at - first.at < 500) return undefined;
  const rate = (1000 * (last.sent - first.sent)) / (last.at - first.at);
  return rate > 0 ? rate : undefined;
}
