/** The check of the data: its report, its pictures page by page, and what is changed in them. */
import { computed, signal } from "@preact/signals";
import { BASE, api, isMissing, result } from "../../api/client";
import { follow } from "../../api/events";
import { type CheckResult, type DatasetPicture, type GivenEdit, type JobStatus, type Report, isLive } from "../../api/types";
import type { Train } from "./request";
import { restBeforeSaving } from "./saving";

/** undefined: there is none, or it is not known yet. */
export const check = signal<JobStatus | undefined>();
/** Whether there will be one, of which nothing is known yet. */
export const isReading = signal(false);
export const pictures = signal<readonly DatasetPicture[]>([]);
/** Pages of pictures: those that are here, and all. */
export const pages = signal({ shown: 0, all: 0, size: 0 });
/** Changes that are not sent yet, by the picture's number. */
export const unsaved = signal<ReadonlyMap<number, GivenEdit>>(new Map());
export const hasSaveFailed = signal(false);
export const problem = signal<Error | undefined>();

export const report = computed<Report | undefined>(() => {
  const { value: job } = check;
  if (job?.status !== "COMPLETED") return undefined;
  const { dataset } = job.output as CheckResult;
  return "images" in dataset ? (dataset as Report) : undefined;
});
export const warnings = computed(() => (report.value ? ((check.value?.output as CheckResult).warnings ?? []) : []));
/** What the check was asked for. */
export const options = computed<Train>(() => (check.value?.input as { train?: Train } | undefined)?.train ?? {});

let stop: () => void = () => {};
let timer: number | undefined;
let saves = 0;
let saving: Promise<void> = Promise.resolve();

const path = (id: string) => ({ params: { path: { job: id } } });

/** Follow a check until it ends, then show its pictures. */
export function followCheck(id: string): void {
  forgetCheck();
  isReading.value = true;
  let isOver = false;
  const read = async () => {
    try {
      const job = await result(api.GET("/status/{job}", path(id)));
      if (isOver) return;
      check.value = job;
      isReading.value = false;
      problem.value = undefined;
      if (isLive(job.status)) return;
      stop();
      if (job.status === "COMPLETED") await loadPage();
    } catch (error) {
      // When the check is over, its pictures may still not have come.
      if (isOver && check.value?.id !== id) return;
      isReading.value = false;
      problem.value = error as Error;
    }
  };
  void read();
  const end = follow(`${BASE}/events/${encodeURIComponent(id)}`, ["status", "stage"], () => void read(), {
    onOpen: () => void read(),
    goesOn: () => !isMissing(problem.value),
  });
  stop = () => {
    isOver = true;
    end();
    stop = () => {};
  };
}

export function forgetCheck(): void {
  stop();
  window.clearTimeout(timer);
  timer = undefined;
  saves = 0;
  check.value = undefined;
  isReading.value = false;
  problem.value = undefined;
  pictures.value = [];
  pages.value = { shown: 0, all: 0, size: 0 };
  unsaved.value = new Map();
  hasSaveFailed.value = false;
}

/** Load the next page of pictures. */
export async function loadPage(): Promise<void> {
  const id = check.value?.id;
  if (id === undefined) return;
  const next = pages.value.shown + 1;
  const page = await result(api.GET("/jobs/{job}/dataset", { params: { path: { job: id }, query: { page: next } } }));
  if (check.value?.id !== id || pages.value.shown >= page.page) return;
  pictures.value = [...pictures.value, ...page.pictures];
  // All but the last are as long as the first.
  pages.value = { shown: page.page, all: page.pages, size: pages.value.size || page.pictures.length };
}

/** Change a picture: shown at once, sent after a rest together with others. */
export function edit(change: GivenEdit, onFailure: (error: Error) => void): void {
  unsaved.value = new Map(unsaved.value).set(change.number, { ...unsaved.value.get(change.number), ...change });
  window.clearTimeout(timer);
  timer = window.setTimeout(() => void save().catch(onFailure), restBeforeSaving(saves));
}

/** Send what is changed, and read what the check says then. */
export function save(): Promise<void> {
  // A failure was told to whom it belongs.
  saving = saving.catch(() => {}).then(saveNow);
  saving.then(() => (hasSaveFailed.value = false), () => (hasSaveFailed.value = true));
  return saving;
}

const MOST_AT_ONCE = 1000;

async function saveNow(): Promise<void> {
  window.clearTimeout(timer);
  const id = check.value?.id;
  const sent = [...unsaved.value].slice(0, MOST_AT_ONCE);
  if (id === undefined || !sent.length) return;
  saves += 1;
  await result(api.PATCH("/jobs/{job}/dataset", { ...path(id), body: { pictures: sent.map(([, change]) => change) } }));
  await Promise.all([readReport(id), readAgain(id, sent.map(([number]) => number))]);
  // What was changed again meanwhile is sent next.
  unsaved.value = new Map([...unsaved.value].filter(([number, change]) => !sent.some(([each, was]) => each === number && was === change)));
  if (unsaved.value.size) await saveNow();
}

async function readReport(id: string): Promise<void> {
  const job = await result(api.GET("/status/{job}", path(id)));
  if (check.value?.id === id) check.value = job;
}

/** Read the pages of these pictures again. */
async function readAgain(id: string, numbers: readonly number[]): Promise<void> {
  const changed = new Set(numbers.map((number) => Math.floor((number - 1) / pages.value.size) + 1));
  const read = await Promise.all(
    [...changed].map((page) => result(api.GET("/jobs/{job}/dataset", { params: { path: { job: id }, query: { page } } }))),
  );
  const fresh = new Map(read.flatMap((page) => page.pictures).map((picture) => [picture.number, picture]));
  pictures.value = pictures.value.map((picture) => fresh.get(picture.number) ?? picture);
}
