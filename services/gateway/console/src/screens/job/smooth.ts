/**
 * Smooth by an exponential moving average that runs forwards, then backwards, so that nothing is shifted.
 *
 * @param values of a curve; null: no number at this step.
 * @param weight of what came before, from 0 (as it is) to below 1.
 */
export function smooth(values: readonly (number | null)[], weight: number): (number | null)[] {
  if (weight <= 0) return [...values];
  return averaged(averaged(values, weight).reverse(), weight).reverse();
}

function averaged(values: readonly (number | null)[], weight: number): (number | null)[] {
  let mean: number | null = null;
  return values.map((value) => {
    if (value === null) return null;
    mean = mean === null ? value : weight * mean + (1 - weight) * value;
    return mean;
  });
}
