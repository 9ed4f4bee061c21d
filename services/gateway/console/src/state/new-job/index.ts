/** A job that is being made: its data, its check, its settings. It stays while other pages are looked at. */
import { computed, effect, signal } from "@preact/signals";
import { Failure, api, isSignedOut, result } from "../../api/client";
import { isJobId } from "../../api/types";
import { readStatus } from "../pictures";
import { type Chosen, type LeftOut, planOf } from "./packing";
import { EMPTY, type Form, type Mistakes, type Request, formOf, mistakesOf, remaining, requestOf, sorted, trainOf } from "./request";
import { texts } from "../../texts";
import * as checks from "./check";
import { keepDraft, readDraft } from "./draft";
import { cancelUpload, transfer, uploadPacked, uploadZip } from "./upload";

export const form = signal<Form>(readDraft());
effect(() => keepDraft(form.value));
/** The URL that is typed, or the one of the upload. */
export const dataUrl = signal("");
/** Files that were chosen and are not uploaded. */
export const leftOut = signal<readonly LeftOut[]>([]);
/** Whether a check is being asked for. */
export const isAsking = signal(false);
/** Why the data cannot be taken. */
export const dataProblem = signal<Failure | undefined>();
interface Refusal {
  /** As it was. */
  form: Form;
  byPath: Mistakes;
  /** Mistakes of no field. */
  others: readonly string[];
}
const NOT_REFUSED: Refusal = { form: EMPTY, byPath: {}, others: [] };
/** What the server said to the last attempt. */
export const refused = signal(NOT_REFUSED);
export const isSubmitting = signal(false);

/** What is wrong, by the field's path; it prevents another attempt. */
export const mistakes = computed<Mistakes>(() => {
  const { byPath, form: before } = refused.value;
  return { ...remaining(byPath, before, form.value), ...mistakesOf(form.value) };
});

/** Whether the numbers of the check are not those of the form's settings. */
export const isEstimateOld = computed(() => {
  const { data_url: _data, ...asked } = checks.options.value;
  return checks.report.value !== undefined && sortedJson(asked) !== sortedJson(trainOf(form.value));
});

const sortedJson = (values: object): string => JSON.stringify(Object.entries(values).sort(([one], [other]) => (one < other ? -1 : 1)));

// A closed tab would end the upload.
const keepPage = (event: Event) => event.preventDefault();
effect(() => {
  if (transfer.value) window.addEventListener("beforeunload", keepPage);
  else window.removeEventListener("beforeunload", keepPage);
});

export function startOver(): void {
  cancelUpload();
  checks.forgetCheck();
  form.value = EMPTY;
  dataUrl.value = "";
  leftOut.value = [];
  dataProblem.value = undefined;
  refused.value = NOT_REFUSED;
  lastSent = undefined;
}

/** Give back the data, and keep the settings. */
export function forgetData(): void {
  const kept = form.value;
  startOver();
  form.value = kept;
}

/** Upload what was chosen, and check it; returns the check's id, or null if it came to none. */
export async function take(files: readonly Chosen<File>[]): Promise<string | null> {
  const plan = planOf(files);
  leftOut.value = plan.kind === "zip" ? [] : plan.leftOut;
  if (plan.kind === "none") {
    dataProblem.value = new Failure(0, texts.newJob.unusable[plan.reason]);
    return null;
  }
  return attemptData(async () => {
    const address = plan.kind === "zip"
      ? await uploadZip(plan.chosen.file)
      : await uploadPacked(plan.chosen, texts.newJob.packed(plan.chosen.length));
    if (address === null) return null;
    dataUrl.value = address;
    checks.isReading.value = true; // nothing more is to be chosen
    return beginCheck(address);
  });
}

/** Check the data of a URL. */
export const takeUrl = (url: string): Promise<string | null> => attemptData(() => beginCheck(url.trim()));

/** Check what the present check has, with the settings of now. */
export const checkAgain = (): Promise<string | null> =>
  attemptData(async () => {
    await checks.save();
    return beginCheck(checks.check.value!.id);
  });

async function attemptData(action: () => Promise<string | null>): Promise<string | null> {
  dataProblem.value = undefined;
  isAsking.value = true;
  try {
    return await action();
  } catch (error) {
    checks.isReading.value = false;
    if (isSignedOut.value) return null;
    dataProblem.value = error instanceof Failure ? error : new Failure(0, (error as Error).message);
    return null;
  } finally {
    isAsking.value = false;
  }
}

async function beginCheck(address: string): Promise<string> {
  const { train } = requestOf(form.value, address).input;
  const { id } = await result(api.POST("/dataset/check", { body: { input: { train } } as never }));
  checks.followCheck(id);
  return id;
}

/** Fill the form from an earlier job; returns the check that it was trained on, or null if there was none. */
export async function fillFrom(id: string): Promise<string | null> {
  const job = await readStatus(id);
  startOver();
  const input = job.input as Parameters<typeof formOf>[0];
  form.value = formOf(input);
  const address = String(input.train?.data_url ?? "");
  if (isJobId(address)) {
    checks.followCheck(address);
    return address;
  }
  dataUrl.value = address;
  return null;
}

/** Go on with a check, as after the page was loaded again. */
export function goOn(id: string): void {
  if (checks.check.value?.id !== id && isJobId(id)) checks.followCheck(id);
}

let lastSent: { body: string; key: string } | undefined;

/** A request that is sent again because its answer was lost must not make another job. */
function keyOf(request: Request): string {
  const body = JSON.stringify(request);
  if (lastSent?.body !== body) lastSent = { body, key: randomKey() };
  return lastSent.key;
}

const randomKey = (): string =>
  [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** Submit the job; returns its id, or null if it was refused. */
export async function submit(): Promise<string | null> {
  const id = checks.check.value?.id;
  if (id === undefined) return null;
  refused.value = NOT_REFUSED;
  isSubmitting.value = true;
  try {
    await checks.save();
    const request = requestOf(form.value, id);
    const params = { header: { "Idempotency-Key": keyOf(request) } };
    const job = await result(api.POST("/run", { params, body: request as never }));
    startOver();
    return job.id;
  } catch (error) {
    if (isSignedOut.value) return null;
    const failure = error as Failure;
    const said = failure.mistakes?.length ? sorted(failure.mistakes) : { byPath: {}, others: [failure.message] };
    refused.value = { form: form.value, ...said };
    return null;
  } finally {
    isSubmitting.value = false;
  }
}
