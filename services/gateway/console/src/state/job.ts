/** One job as its page shows it: what `/status` says, kept up to date by events. */
import { type Signal, batch, signal } from "@preact/signals";
import { BASE, api, isMissing, result } from "../api/client";
import { type StreamEvent, follow } from "../api/events";
import { once } from "../once";
import { onOtherTab, tellOtherTabs } from "./other-tabs";
import { type JobStatus, type Kind, type Point, type Progress, isLive } from "../api/types";

const TYPES = ["status", "stage", "dataset", "checkpoint", "checkpoint_deleted", "sample", "image", "progress", "deleted"] as const;
/** Those that are kept, and listed on the job's page. */
export type JobEvent = StreamEvent<Exclude<(typeof TYPES)[number], "progress">>;

export interface Followed {
  /** undefined: it is not known yet, or deleted; `problem` tells. */
  job: Signal<JobStatus | undefined>;
  /** undefined: it is not known yet. */
  kind: Signal<Kind | undefined>;
  problem: Signal<unknown>;
  events: Signal<readonly JobEvent[]>;
  /** undefined: they were not read yet. */
  points: Signal<readonly Point[] | undefined>;
  read: () => Promise<void>;
  stop: () => void;
}

/** Events come in bursts: the job is read once for all that come in this time. */
const READ_AFTER_MS = 150;
/** The curves are read at most this often. */
const CURVES_MS = 3000;

/** @param known its kind, where that is known: drawings have no curves. */
export function followJob(id: string, known?: Kind): Followed {
  const withCurves = known !== "draw";
  const job = signal<JobStatus | undefined>();
  const kind = signal(known);
  const problem = signal<unknown>();
  const events = signal<readonly JobEvent[]>([]);
  const points = signal<readonly Point[] | undefined>();

  const path = { params: { path: { job: id } } };
  const read = async () => {
    try {
      const [status, kindRead] = await Promise.all([result(api.GET("/status/{job}", path)), kind.value ?? kindOf(id)]);
      batch(() => {
        kind.value ??= kindRead;
        job.value = status;
        problem.value = undefined;
      });
    } catch (error) {
      problem.value = error;
      if (isMissing(error)) job.value = undefined; // it was deleted, perhaps in another tab
    }
  };
  const readCurves = async () => {
    try {
      points.value = await newPoints(id, points.value ?? []);
    } catch {
      // the curves are not what the page is for, and the next progress asks again
    }
  };
  const readSoon = once(read, READ_AFTER_MS);
  const readCurvesSoon = withCurves ? once(readCurves, CURVES_MS) : () => {};

  // A page that is opened late gets hundreds at once.
  let arrived: JobEvent[] = [];
  const showSoon = once(async () => {
    events.value = [...events.value, ...arrived];
    arrived = [];
  }, READ_AFTER_MS);

  const handle = (event: StreamEvent<(typeof TYPES)[number]>) => {
    if (event.type === "progress") {
      const current = job.value;
      if (current && isLive(current.status)) {
        job.value = { ...current, output: { ...(current.output as Progress), ...event.data } };
      }
      readCurvesSoon();
      return;
    }
    arrived.push(event);
    showSoon();
    readSoon();
    if (event.type === "status") readCurvesSoon();
  };

  void read();
  if (withCurves) void readCurves();
  const end = follow(`${BASE}/events/${encodeURIComponent(id)}`, TYPES, handle, {
    onOpen: readSoon,
    onEnd: readSoon,
    goesOn: () => (job.value ? isLive(job.value.status) : !isMissing(problem.value)),
  });
  const endOthers = onOtherTab((told) => {
    if (told.job === id) readSoon();
  });
  const stop = () => {
    end();
    endOthers();
  };
  return { job, kind, problem, events, points, read, stop };
}

/** What the list alone tells; undefined: it cannot be read now, and the job is shown without it. */
async function kindOf(id: string): Promise<Kind | undefined> {
  try {
    const { jobs } = await result(api.GET("/jobs", { params: { query: { id, limit: 1 } } }));
    return jobs[0]?.kind;
  } catch {
    return undefined;
  }
}

/** The curves with what has come since; one that was resumed went back to its resume point. */
async function newPoints(id: string, known: readonly Point[]): Promise<readonly Point[]> {
  const after = known.at(-1)?.step;
  const params = { path: { job: id }, query: after === undefined ? {} : { after } };
  const { points, last_step: last } = await result(api.GET("/jobs/{job}/metrics", { params }));
  if (after !== undefined && (last ?? 0) < after) return newPoints(id, []);
  return points.length ? [...known, ...points] : known;
}

type Command = "sample" | "save" | "stop";

export const command = (id: string, kind: Command) =>
  result(api.POST(`/jobs/{job}/${kind}`, { params: { path: { job: id } } }));

export async function deleteCheckpoint(id: string, step: number): Promise<void> {
  await result(api.DELETE("/jobs/{job}/checkpoints/{step}", { params: { path: { job: id, step: String(step) } } }));
  tellOtherTabs({ job: id, isDeleted: false });
}

export async function retryJob(id: string): Promise<void> {
  await result(api.POST("/retry/{job}", { params: { path: { job: id } } }));
  tellOtherTabs({ job: id, isDeleted: false });
}
