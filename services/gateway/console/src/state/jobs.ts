/** The key's jobs, newest first, kept up to date by events. */
import { signal } from "@preact/signals";
import { BASE, api, result } from "../api/client";
import { follow } from "../api/events";
import { type JobStatus, type JobSummary, type Progress, type Status, isLive } from "../api/types";

/** A job as the list shows it. */
export interface Row extends JobSummary {
  queue?: JobStatus["queue"];
  progress?: Partial<Progress>;
}

export const rows = signal<readonly Row[]>([]);
export const isLoaded = signal(false);
export const next = signal<string | null>(null);
export const filter = signal<Status | "">("");

const PAGE = 50;
const TYPES = ["status", "stage", "progress", "sample", "image", "deleted"] as const;

/** Read the first page again. */
export async function load(): Promise<void> {
  const page = await readPage();
  const known = new Map(rows.value.map((row) => [row.id, row]));
  rows.value = page.jobs.map((job) => ({ ...known.get(job.id), ...job }));
  next.value = page.next;
  isLoaded.value = true;
  await Promise.all(rows.value.filter((row) => isLive(row.status)).map((row) => refresh(row.id)));
}

export async function loadMore(): Promise<void> {
  if (next.value === null) return;
  const page = await readPage(next.value);
  rows.value = [...rows.value, ...page.jobs];
  next.value = page.next;
}

function readPage(cursor?: string) {
  const status = filter.value ? [filter.value] : undefined;
  const query = { limit: PAGE, ...(status && { status }), ...(cursor && { cursor }) };
  return result(api.GET("/jobs", { params: { query } }));
}

/** Keep the list up to date; returns a function that stops it. */
export function watch(onProblem: (error: unknown) => void): () => void {
  const reload = () => void load().catch(onProblem);
  reload();
  return follow(`${BASE}/events`, TYPES, (type, data) => handle(type, data, reload), { onOpen: reload });
}

function handle(type: string, data: any, reload: () => void): void {
  const row = rows.value.find((each) => each.id === data.job);
  if (type === "deleted") rows.value = rows.value.filter((each) => each.id !== data.job);
  else if (!row) reload();
  else if (type === "progress") change(row.id, { progress: { ...row.progress, ...data } });
  else void refresh(row.id);
}

/** Read one job again, and what the list does not tell of it. */
async function refresh(id: string): Promise<void> {
  const job = await result(api.GET("/status/{job}", { params: { path: { job: id } } }));
  const progress = isLive(job.status) ? { progress: job.output as Progress } : {};
  const error = job.error === undefined ? {} : { error: job.error };
  const { status, delayTime, executionTime, gpu, queue } = job;
  change(id, { status, delayTime, executionTime, gpu, queue, ...progress, ...error });
}

function change(id: string, changes: Partial<Row>): void {
  rows.value = rows.value.map((row) => (row.id === id ? ({ ...row, ...changes } as Row) : row));
}

export const cancelJob = (id: string) => result(api.POST("/cancel/{job}", { params: { path: { job: id } } }));
export const deleteJob = (id: string) => result(api.DELETE("/jobs/{job}", { params: { path: { job: id } } }));
