import type { Progress } from "../../api/types";

/** How much of the current stage is done, from 0 to 1; undefined: not known. */
export function shareOf(progress: Partial<Progress> | undefined): number | undefined {
  const { step, steps } = progress ?? {};
  return step == null || !steps ? undefined : Math.min(1, step / steps);
}
