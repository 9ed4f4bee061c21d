/** Jobs with the images they have drawn, newest first. */
import { Failure, api, isMissing, result } from "../api/client";
import { number } from "../format";
import { texts } from "../texts";
import { type Image, type JobStatus, type JobSummary, type Kind, type Results, type Status, isJobId, isLive, jobIdIn } from "../api/types";
import { type List, listOf } from "./list";
import { onOtherTab } from "./other-tabs";

export interface PictureJob {
  kind: Kind;
  createdAt: string;
  job: JobStatus;
}

/** One of a job's images, by its place in the results. */
export interface Picture {
  job: JobStatus;
  index: number;
  image: Image;
}

interface Asked {
  kind: Kind[];
  /** Empty: any. */
  status: Status[];
}

const PAGE = 20;
/** Statuses read at a time. */
const PARALLEL = 4;

/** The name by which the API knows the deployment's base model. */
export const BASE_MODEL = "sd_v1-5_vae.ckpt";

/**
 * @param asked which jobs are to be read, of those for which images were asked.
 * @param isShown tells by its status whether a job belongs here.
 */
export function pictureJobs(asked: Asked, isShown: (found: PictureJob) => boolean = () => true): List<PictureJob> {
  const list: List<PictureJob> = listOf(async (cursor) => {
    const query = { ...asked, limit: PAGE, ...(cursor !== undefined && { cursor }) };
    const page = await result(api.GET("/jobs", { params: { query } }));
    const known = new Set(list.items.value.map((each) => each.job.id));
    const wanted = page.jobs.filter((each) => each.draws && !known.has(each.id));
    const found = (await inTurns(wanted, readJob)).filter((each) => each !== null);
    return { items: found.filter(isShown), next: page.next };
  });
  return list;
}

/** Take out of a list what another tab deletes; returns a function that ends it. */
export const withoutDeleted = ({ items }: List<PictureJob>): (() => void) =>
  onOtherTab(({ job, isDeleted }) => {
    if (isDeleted) items.value = items.value.filter((each) => each.job.id !== job);
  });

/** null: the job has been deleted meanwhile. */
async function readJob({ id, kind, created_at: createdAt }: JobSummary): Promise<PictureJob | null> {
  try {
    return { kind, createdAt, job: await readStatus(id) };
  } catch (error) {
    if (isMissing(error)) return null;
    throw error;
  }
}

/** What `/status` says of a job; what is no id, as an address may have it, is not asked for. */
export async function readStatus(text: string): Promise<JobStatus> {
  const job = jobIdIn(text);
  if (job === undefined) throw new Failure(404, texts.job.notFound);
  return result(api.GET("/status/{job}", { params: { path: { job } } }));
}

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
export const picturesOf = (job: JobStatus): Picture[] =>
  imagesOf(job).flatMap((image, index) => (image.image ? [{ job, index, image }] : []));

export const keyOf = ({ job, index }: Picture): string => `${job.id} ${index}`;

/** Where the form draws with a picture's settings. */
export const drawAgain = ({ job, index }: Picture): string => `/draw?from=${encodeURIComponent(job.id)}&image=${index}`;

/** What a job draws with, as a form holds it: a model's name, or the JSON of several with `base`. */
export function modelOf({ id, input }: JobStatus): string {
  const { model, base } = input as { model?: unknown; base?: unknown };
  if (model == null) return id;
  return typeof model === "string" && base == null ? model : JSON.stringify({ model, ...(base != null && { base }) });
}

/** Whether a job trains a LoRA, as far as its input tells. */
export const isLora = (input: Record<string, unknown>): boolean =>
  (input.train as { lora_rank?: number | null } | null | undefined)?.lora_rank != null;

type Model = string | { model: string; weight?: number };
type ModelInput = { model: string | Model[]; base?: string };

/** What a request's `input` must say to draw with it. */
export function modelInputOf(text: string): ModelInput {
  try {
    const input = JSON.parse(text) as Partial<ModelInput> | null;
    const models = [input?.model ?? []].flat();
    if (models.length > 0 && models.every(isModel)) return input as ModelInput;
  } catch {
    // a name
  }
  return { model: text };
}

const isModel = (each: unknown): boolean => typeof ((each as { model?: unknown } | null)?.model ?? each) === "string";

/** A model in words: its name, its LoRAs with their weights, and what they are put on. */
export function nameOfModel(text: string): string {
  const { model, base } = modelInputOf(text);
  const names = [model].flat().map((each) => {
    const [name, weight] = typeof each === "string" ? [each, undefined] : [each.model, each.weight];
    return `${name === BASE_MODEL ? texts.draw.base : isJobId(name) ? texts.draw.training(name.slice(0, 8)) : name}${weight === undefined ? "" : ` × ${number(weight)}`}`;
  });
  return names.join(" + ") + (base === undefined ? "" : ` (${texts.draw.onBase(base)})`);
}
