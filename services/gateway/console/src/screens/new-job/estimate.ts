/** What a report foretells, in words. */
import type { Report } from "../../api/types";
import { bytes, count, duration } from "../../format";
import { texts } from "../../texts";

const words = texts.newJob;

export interface Line {
  name: string;
  value: string;
  note?: string;
}

export function estimateOf(report: Report): Line[] {
  const { estimate, held_out: heldOut } = report;
  return [
    { name: words.used, value: count(report.images) },
    ...(heldOut ? [{ name: words.heldOut, value: count(heldOut) }] : []),
    { name: words.steps, value: count(report.steps ?? 0) },
    ...(estimate ? [{ name: words.time, value: timeOf(estimate.minutes), note: estimate.rate }] : []),
    ...(estimate ? [{ name: words.room, value: words.upTo(bytes(estimate.bytes)) }] : []),
  ];
}

const timeOf = (minutes: number | null): string =>
  minutes === null ? words.unknownTime : words.about(duration(Math.max(1, Math.round(minutes * 60))));

export function captionsOf({ captions }: Report): string {
  const { from_names: names = 0, from_files: files = 0, edited = 0, missing = 0 } = captions;
  const parts = [
    words.captionsFrom(count(names), count(files)),
    edited > 0 && words.captionsEdited(count(edited)),
    missing > 0 && words.captionsMissing(count(missing)),
  ].filter(Boolean);
  return words.captions(parts.join(", "));
}

/** For a line beside a button. */
export const shortly = ({ steps, estimate }: Report): string =>
  words.shortly(steps ?? 0, count(steps ?? 0), estimate?.minutes == null ? words.noTime : timeOf(estimate.minutes));
