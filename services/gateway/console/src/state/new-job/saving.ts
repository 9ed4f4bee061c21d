/** A check takes 300 changes; each may be of many pictures. */
const OFTEN = 100;
const SHORT_MS = 800;
const LONG_MS = 20_000;

/** How long a person rests before what was changed is sent, after so many times: rarely, once it was often. */
export const restBeforeSaving = (saves: number): number => (saves < OFTEN ? SHORT_MS : LONG_MS);
