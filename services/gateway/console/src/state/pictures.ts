/** Jobs with the images they have drawn, newest first, read page by page. */
import { type Signal, signal } from "@preact/signals";
import { Failure, api, result } from "../api/client";
import { number } from "../format";
import { texts } from "../texts";
import { type Image, type JobStatus, type JobSummary, type Results, isLive } from "../api/types";

export interface PictureJob {
  id: string;
  kind: JobSummary["kind"];
  createdAt: string;
  job: JobStatus;
}

/** One of a job's images, by its place in the results. */
export interface Picture {
  of: PictureJob;
  index: number;
  image: Image;
}

export interface PictureJobs {
  jobs: Signal<readonly PictureJob[]>;
  isBusy: Signal<boolean>;
  hasMore: Signal<boolean>;
  problem: Signal<unknown>;
  more: () => Promise<void>;
}

const PAGE = 20;
/** One look goes on until it has found so many jobs, or has read so many pages. */
const ENOUGH = 10;
const LONGEST_LOOK = 5;
/** Statuses read at a time. */
const PARALLEL = 4;

/** The name by which the API knows the deployment's base model. */
export const BASE_MODEL = "sd_v1-5_vae.ckpt";

/**
 * @param isWanted tells by the list's row whether the job is to be read.
 * @param isShown tells by its status whether it belongs here.
 */
export function pictureJobs(
  isWanted: (summary: JobSummary) => boolean,
  isShown: (found: PictureJob) => boolean = () => true,
): PictureJobs {
  const jobs = signal<readonly PictureJob[]>([]);
  const isBusy = signal(false);
  const hasMore = signal(true);
  const problem = signal<unknown>();
  let cursor: string | undefined;

  const readPage = async (): Promise<number> => {
    const page = await result(api.GET("/jobs", { params: { query: { limit: PAGE, ...(cursor && { cursor }) } } }));
    const known = new Set(jobs.value.map((each) => each.id));
    const wanted = page.jobs.filter((each) => isWanted(each) && !known.has(each.id));
    const found = (await inTurns(wanted, readJob)).filter((each) => each !== null).filter(isShown);
    jobs.value = [...jobs.value, ...found];
    cursor = page.next ?? undefined;
    hasMore.value = page.next !== null;
    return found.length;
  };

  const more = async () => {
    if (isBusy.value) return;
    isBusy.value = true;
    problem.value = undefined;
    try {
      let found = 0;
      for (let page = 0; page < LONGEST_LOOK && hasMore.value && found < ENOUGH; page++) found += await readPage();
    } catch (error) {
      problem.value = error;
    } finally {
      isBusy.value = false;
    }
  };
  return { jobs, isBusy, hasMore, problem, more };
}

/** null: the job has been deleted meanwhile. */
async function readJob(summary: JobSummary): Promise<PictureJob | null> {
  try {
    const job = await readStatus(summary.id);
    return { id: summary.id, kind: summary.kind, createdAt: summary.created_at, job };
  } catch (error) {
    if (error instanceof Failure && error.status === 404) return null;
    throw error;
  }
}

export const readStatus = (id: string): Promise<JobStatus> =>
  result(api.GET("/status/{job}", { params: { path: { job: id } } }));

async function inTurns<T, R>(items: readonly T[], act: (item: T) => Promise<R>): Promise<R[]> {
  const done: R[] = [];
  for (let first = 0; first < items.length; first += PARALLEL) {
    done.push(...(await Promise.all(items.slice(first, first + PARALLEL).map(act))));
  }
  return done;
}

/** What a job has drawn; none before its end. */
export const imagesOf = (job: JobStatus): readonly Image[] =>
  isLive(job.status) ? [] : ((job.output as Partial<Results>).inference ?? []);

/** The images that are there, without those that failed. */
export const picturesOf = (of: PictureJob): Picture[] =>
  imagesOf(of.job).flatMap((image, index) => (image.image ? [{ of, index, image }] : []));

/** What a job draws with, as a form holds it: a model's name, or the JSON of several with `base`. */
export function modelOf({ id, input }: JobStatus): string {
  const { model, base } = input as { model?: unknown; base?: unknown };
  if (model == null) return id;
  return typeof model === "string" && base == null ? model : JSON.stringify({ model, ...(base != null && { base }) });
}

type Model = string | { model: string; weight?: number };
type ModelInput = { model: string | Model[]; base?: string };

/** What a request's `input` must say to draw with it. */
export const modelInputOf = (text: string): ModelInput => (text.startsWith("{") ? (JSON.parse(text) as ModelInput) : { model: text });

/** A model in words: its name, its LoRAs with their weights, and what they are put on. */
export function nameOfModel(text: string): string {
  const { model, base } = modelInputOf(text);
  const names = [model].flat().map((each) => {
    const [name, weight] = typeof each === "string" ? [each, undefined] : [each.model, each.weight];
    return `${name === BASE_MODEL ? texts.draw.base : name}${weight === undefined ? "" : ` × ${number(weight)}`}`;
  });
  return names.join(" + ") + (base === undefined ? "" : ` (${texts.draw.onBase(base)})`);
}
