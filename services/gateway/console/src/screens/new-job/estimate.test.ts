import { beforeAll, expect, it, vi } from "vitest";
import type { Report } from "../../api/types";
import { captionsOf, estimateOf, shortly } from "./estimate";

const REPORT = {
  images: 1200, held_out: 0, steps: 3600, captions: { from_names: 3, from_files: 4, edited: 2 },
  estimate: { minutes: 90, rate: "measured: on a card", bytes: 4e9, checkpoints: 0, checkpoint_bytes: 0, model_bytes: 0, resume_point_bytes: 0 },
} as unknown as Report;

beforeAll(() => void vi.stubGlobal("navigator", { languages: ["en"] }));

it("says pictures, steps, time with what it is based on, and bytes", () => {
  expect(estimateOf(REPORT)).toEqual([
    { name: "Pictures", value: "1,200" },
    { name: "Steps", value: "3,600" },
    { name: "Training time", value: "about 1 hr 30 min", note: "measured: on a card" },
    { name: "Disk space", value: "4 GB at most" },
  ]);
});

it("says that the time is not known, and what is held out", () => {
  const estimate = { ...REPORT.estimate!, minutes: null };
  expect(estimateOf({ ...REPORT, held_out: 5, estimate }).map((line) => line.value)).toContain("Not known yet");
  expect(estimateOf({ ...REPORT, held_out: 5 })[1]).toEqual({ name: "For validation", value: "5" });
  expect(estimateOf({ ...REPORT, estimate: null })).toHaveLength(2);
});

it("says it shortly, with a time or without", () => {
  expect(shortly(REPORT)).toBe("3,600 steps, about 1 hr 30 min");
  expect(shortly({ ...REPORT, estimate: null })).toBe("3,600 steps, time not known yet");
});

it("says where captions are from", () => {
  expect(captionsOf(REPORT)).toBe("Captions: 3 from file names, 4 from files, 2 your own");
  expect(captionsOf({ ...REPORT, captions: { missing: 1 } as Report["captions"] })).toContain(", 1 missing");
});
