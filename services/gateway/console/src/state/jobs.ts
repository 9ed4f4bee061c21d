/** The key's jobs, newest first, kept up to date by events. */
import { signal } from "@preact/signals";
import { BASE, api, result } from "../api/client";
import { type StreamEvent, follow } from "../api/events";
import type { JobSummary, Progress, Status } from "../api/types";
import { isLive } from "../api/types";
import { once } from "../once";
import { signIns } from "./session";

export const rows = signal<readonly JobSummary[]>([]);
export const isLoaded = signal(false);
export const next = signal<string | null>(null);
export const filter = signal<Status | "">("");

const PAGE = 50;
/** Events come in bursts: the page is read once for all that come in this time. */
const RELOAD_AFTER_MS = 200;
const TYPES = ["status", "stage", "progress", "sample", "image", "deleted"] as const;

/** Read the first page again; older jobs that were read stay. */
export async function load(): Promise<void> {
  const page = await readPage();
  const oldest = page.jobs.at(-1);
  const older = oldest && page.next !== null ? rows.value.filter((row) => isOlder(row, oldest)) : [];
  rows.value = [...page.jobs, ...older];
  if (!older.length) next.value = page.next;
  isLoaded.value = true;
}

/** Show the jobs of another filter. */
export function show(status: Status | ""): Promise<void> {
  filter.value = status;
  rows.value = [];
  return load();
}

const isOlder = (row: JobSummary, than: JobSummary) =>
  row.created_at < than.created_at || (row.created_at === than.created_at && row.id < than.id);

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

/** The sign-in in which the list was read: another key has other jobs. */
let readIn = 0;

/** Keep the list up to date; returns a function that stops it. */
export function watch(onProblem: (error: unknown) => void): () => void {
  if (readIn !== signIns.value) rows.value = [];
  readIn = signIns.value;
  const reload = () => load().catch(onProblem);
  const reloadSoon = once(reload, RELOAD_AFTER_MS);
  void reload();
  return follow(`${BASE}/events`, TYPES, (event) => handle(event, reloadSoon), { onOpen: reloadSoon });
}

function handle(event: StreamEvent<(typeof TYPES)[number]>, reload: () => void): void {
  const index = rows.value.findIndex((each) => each.id === event.data.job);
  const row = rows.value[index];
  if (event.type === "deleted") rows.value = rows.value.filter((each) => each !== row);
  else if (event.type === "progress") {
    if (row) change(row.id, { progress: { ...row.progress, ...event.data } as Progress });
  } else if (row && index >= PAGE) void refresh(row.id);
  else reload();
}

/** Read a job again that is not on the first page. */
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

export const cancelJob = (id: string) => result(api.POST("/cancel/{job}", { params: { path: { job: id } } }));
export const deleteJob = (id: string) => result(api.DELETE("/jobs/{job}", { params: { path: { job: id } } }));
