/** A page of the key's jobs, newest first, kept up to date by events. */
import { signal } from "@preact/signals";
import { BASE, api, isMissing, isRefused, result } from "../api/client";
import { type StreamEvent, follow } from "../api/events";
import type { JobSummary, Progress } from "../api/types";
import { isLive } from "../api/types";
import { once } from "../once";
import { tellOtherTabs } from "./other-tabs";
import type { Wanted } from "./wanted";

export const rows = signal<readonly JobSummary[]>([]);
/** Where the next page begins; null: there is none. */
export const next = signal<string | null>(null);
/** What `rows` are; null: nothing was read yet. */
export const listed = signal<Wanted | null>(null);
/** Why it could not be read the last time. */
export const problem = signal<Error | undefined>();

const PAGE = 50;
/** Events come in bursts: the page is read once for all that come in this time. */
const RELOAD_AFTER_MS = 200;
const TYPES = ["status", "stage", "progress", "sample", "image", "deleted"] as const;
const JOB_ID_BEGINNING = /^[0-9a-f-]{1,36}$/;

/** A page that could not be read is read again: the stream of events may be up all the while. */
const AGAIN_MS = 3000;

let wanted: Wanted = { kind: "", status: "", id: "", from: "" };
let again: number | undefined;

/** List other jobs. */
export function show(now: Wanted): void {
  wanted = now;
  void load();
}

/** Read the page again. */
export async function load(): Promise<void> {
  const asked = wanted;
  window.clearTimeout(again);
  try {
    const page = await readPage(asked);
    if (asked !== wanted) return; // the answer to what was wanted before comes late
    rows.value = page.jobs;
    next.value = page.next;
    listed.value = asked;
    problem.value = undefined;
  } catch (error) {
    problem.value = error as Error;
    window.clearTimeout(again);
    if (isRefused(error)) return;
    again = window.setTimeout(() => void load(), AGAIN_MS);
  }
}

async function readPage({ kind, status, id, from }: Wanted) {
  // No id begins with anything else.
  if (id && !JOB_ID_BEGINNING.test(id)) return { jobs: [], next: null };
  const query = { limit: PAGE, ...(kind && { kind: [kind] }), ...(status && { status: [status] }), ...(id && { id }), ...(from && { cursor: from }) };
  return result(api.GET("/jobs", { params: { query } }));
}

/** Keep the page up to date; returns a function that stops it. */
export function watch(): () => void {
  const reloadSoon = once(load, RELOAD_AFTER_MS);
  const stop = follow(`${BASE}/events`, TYPES, (event) => handle(event, reloadSoon), { onOpen: reloadSoon });
  return () => {
    window.clearTimeout(again);
    stop();
  };
}

function handle({ type, data }: StreamEvent<(typeof TYPES)[number]>, reload: () => void): void {
  const row = rows.value.find((each) => each.id === data.job);
  if (type === "deleted") rows.value = rows.value.filter((each) => each !== row);
  if (type === "progress") {
    if (row) change(row.id, { progress: { ...row.progress, ...data } as Progress });
  } else if (!wanted.from) reload();
  else if (row && type !== "deleted") void refresh(row.id).catch(reload);
}

/** Read one job of an older page again, on which no new ones appear. */
async function refresh(id: string): Promise<void> {
  const { status, delayTime, executionTime, gpu, queue, output, error } = await result(
    api.GET("/status/{job}", { params: { path: { job: id } } }),
  );
  const progress = isLive(status) ? (output as Progress) : undefined;
  const known = { queue, progress, error };
  change(id, { status, delayTime, executionTime, gpu, ...known } as Partial<JobSummary>);
}

function change(id: string, changes: Partial<JobSummary>): void {
  rows.value = rows.value.map((row) => (row.id === id ? { ...row, ...changes } : row));
}

export const cancelJob = (id: string) => unlessMissing(api.POST("/cancel/{job}", { params: { path: { job: id } } }));
export async function deleteJob(id: string): Promise<void> {
  await unlessMissing(api.DELETE("/jobs/{job}", { params: { path: { job: id } } }));
  tellOtherTabs({ job: id, isDeleted: true });
}

/** One that was deleted meanwhile is as it should be. */
async function unlessMissing(call: Parameters<typeof result>[0]): Promise<void> {
  try {
    await result(call);
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
}
