/** One job as its page shows it: what `/status` says, kept up to date by events. */
import { type Signal, signal } from "@preact/signals";
import { BASE, api, result } from "../api/client";
import { follow } from "../api/events";
import { type JobStatus, type Progress, isLive } from "../api/types";

export interface JobEvent {
  id: string;
  type: string;
  data: any;
}

export interface Point {
  step: number;
  epoch?: number;
  loss?: number;
  lr?: number;
  validation_loss?: number;
  images_per_second?: number;
}

export interface Followed {
  job: Signal<JobStatus | undefined>;
  problem: Signal<unknown>;
  events: Signal<readonly JobEvent[]>;
  points: Signal<readonly Point[]>;
  stop: () => void;
}

const TYPES = ["status", "stage", "dataset", "checkpoint", "checkpoint_deleted", "sample", "image", "progress", "deleted"];
/** Events come in bursts: the job is read once for all that come in this time. */
const READ_AFTER_MS = 150;
/** The curves are read at most this often. */
const CURVES_MS = 3000;

export function followJob(id: string): Followed {
  const job = signal<JobStatus | undefined>();
  const problem = signal<unknown>();
  const events = signal<readonly JobEvent[]>([]);
  const points = signal<readonly Point[]>([]);

  const path = { params: { path: { job: id } } };
  const read = async () => {
    try {
      job.value = await result(api.GET("/status/{job}", path));
      problem.value = undefined;
    } catch (error) {
      problem.value = error;
    }
  };
  const readCurves = async () => {
    const after = points.value.at(-1)?.step;
    const answer = await fetch(`${BASE}/jobs/${encodeURIComponent(id)}/metrics${after === undefined ? "" : `?after=${after}`}`);
    if (!answer.ok) return; // the curves are not what the page is for; the next progress asks again
    const found = ((await answer.json()) as { points: Point[] }).points;
    if (found.length) points.value = [...points.value, ...found];
  };
  const readSoon = once(read, READ_AFTER_MS);
  const readCurvesSoon = once(readCurves, CURVES_MS);

  const handle = (type: string, data: any, eventId: string) => {
    if (type === "progress") {
      const current = job.value;
      if (current && isLive(current.status)) {
        job.value = { ...current, output: { ...(current.output as Progress), ...data } };
      }
      readCurvesSoon();
      return;
    }
    events.value = [...events.value, { id: eventId, type, data }];
    readSoon();
    if (type === "status") readCurvesSoon();
  };

  void read();
  void readCurves();
  const end = follow(`${BASE}/events/${encodeURIComponent(id)}`, TYPES, handle, readSoon);
  return { job, problem, events, points, stop: end };
}

/** Calls an action once, some time after the first of many requests for it. */
function once(action: () => Promise<void>, after: number): () => void {
  let timer: number | undefined;
  return () => {
    timer ??= window.setTimeout(() => {
      timer = undefined;
      void action();
    }, after);
  };
}

type Command = "sample" | "save" | "stop";

export const command = (id: string, kind: Command) =>
  result(api.POST(`/jobs/{job}/${kind}`, { params: { path: { job: id } } }));

export const retryJob = (id: string) => result(api.POST("/retry/{job}", { params: { path: { job: id } } }));
