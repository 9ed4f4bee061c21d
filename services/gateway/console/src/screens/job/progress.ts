import type { Progress } from "../../api/types";

/** How much of the current stage is done, from 0 to 1; undefined: not known. */
export function shareOf(progress: Partial<Progress> | undefined): number | undefined {
  const { step, steps } = progress ?? {};
  return step == null || !steps ? undefined : Math.min(1, step / steps);
}

/** Which epoch is being trained, counted from 1; the server tells how many are behind it. */
export const epochNow = ({ epoch, step, steps }: { epoch: number } & Pick<Progress, "step" | "steps">): number =>
  step === steps ? epoch : epoch + 1;
