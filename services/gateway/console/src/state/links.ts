/** Links to pictures: each answer signs them anew, and a browser would fetch every picture again. */

/** So long a link that is known is used in place of a newer one; it is good for days. */
const KEPT_MS = 3_600_000;
const known = new Map<string, { link: string; at: number }>();

/** The first link of the last hour to the same picture. */
export function steady(link: string, now: number = Date.now()): string {
  const picture = link.split("?", 1)[0]!;
  const before = known.get(picture);
  if (before && now - before.at < KEPT_MS) return before.link;
  known.set(picture, { link, at: now });
  return link;
}
