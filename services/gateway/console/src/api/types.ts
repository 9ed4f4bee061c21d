/** The API's types by the names that the console uses. */
import type { components } from "./schema";

type Schemas = components["schemas"];

export type BrokerQueue = Schemas["BrokerQueue"];
export type BusyWorker = Schemas["BusyWorker"];
export type CheckResult = Schemas["CheckResult"];
export type Checkpoint = Schemas["Checkpoint"];
export type JobFile = Schemas["File"];
export type Entry = Schemas["RequestInference"];
export type DatasetPicture = Schemas["DatasetPicture"];
export type DeadLetter = Schemas["DeadLetterItem"];
export type Disk = Schemas["Disk"];
export type FreePlaces = Schemas["FreePlaces"];
export type GivenUpWebhook = Schemas["GivenUpWebhook"];
export type Queues = Schemas["Queues"];
export type Service = BusyWorker["service"];
export type GivenEdit = Schemas["GivenEdit"];
export type Image = Schemas["Image"];
export type JobStatus = Schemas["JobStatus"];
export type JobSummary = Schemas["JobSummary"];
export type Kind = JobSummary["kind"];
export type Point = Schemas["MetricsPoint"];
export type Session = Schemas["Session"];
export type Progress = Schemas["Progress"];
export type Report = Schemas["Report"];
export type Results = Schemas["Results"];
export type Sample = Schemas["Sample"];
export type Status = JobStatus["status"];

export const LIVE: readonly Status[] = ["IN_QUEUE", "IN_PROGRESS"];
export const ENDED: Status[] = ["COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"];
export const isLive = (status: Status): boolean => LIVE.includes(status);

export const isJobId = (text: string): boolean => /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(text);

/** The id that an address names, however it was typed; undefined: it is none. */
export function jobIdIn(text: string): string | undefined {
  const id = text.trim().toLowerCase();
  return isJobId(id) ? id : undefined;
}

/** A small picture, where the server has one. */
export const smallOf = <T extends { image: string | null }>(picture: T): T["image"] =>
  (picture as T & { thumbnail?: string | null }).thumbnail ?? picture.image;
