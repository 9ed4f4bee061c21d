/** Numbers, sizes and times as the browser's language writes them. */

const locale = () => navigator.languages as string[];

export const count = (value: number): string => new Intl.NumberFormat(locale()).format(value);

/** A share from 0 to 1. */
export const percent = (share: number): string => new Intl.NumberFormat(locale(), { style: "percent" }).format(share);

/** Few digits, as of a loss or a rate; very small numbers with an exponent. */
export function number(value: number): string {
  const tiny = value !== 0 && Math.abs(value) < 1e-3;
  const options: Intl.NumberFormatOptions = tiny
    ? { notation: "scientific", maximumSignificantDigits: 3 }
    : { maximumSignificantDigits: 4 };
  return new Intl.NumberFormat(locale(), options).format(value);
}

const UNITS = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"] as const;

export function bytes(value: number): string {
  const power = Math.min(UNITS.length - 1, Math.floor(Math.log10(Math.max(value, 1)) / 3));
  return new Intl.NumberFormat(locale(), {
    style: "unit",
    unit: UNITS[power]!,
    unitDisplay: power ? "short" : "long",
    maximumSignificantDigits: 3,
  }).format(value / 1000 ** power);
}

/** The two largest units of a time: 2 h 5 min, 3 min 20 s, 12 s. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const parts: [number, string][] = [
    [Math.floor(whole / 86_400), "day"],
    [Math.floor((whole % 86_400) / 3600), "hour"],
    [Math.floor((whole % 3600) / 60), "minute"],
    [whole % 60, "second"],
  ];
  const first = parts.findIndex(([value]) => value > 0);
  const shown = first < 0 ? parts.slice(-1) : parts.slice(first, first + 2).filter(([value]) => value > 0);
  return shown
    .map(([value, unit]) =>
      new Intl.NumberFormat(locale(), { style: "unit", unit, unitDisplay: "short" }).format(value),
    )
    .join(" ");
}

/** Today's times without the day, others with it. */
export function moment(iso: string, now: Date = new Date()): string {
  const time = new Date(iso);
  const isToday = time.toDateString() === now.toDateString();
  const options: Intl.DateTimeFormatOptions = isToday
    ? { timeStyle: "short" }
    : { dateStyle: "medium", timeStyle: "short" };
  return new Intl.DateTimeFormat(locale(), options).format(time);
}
