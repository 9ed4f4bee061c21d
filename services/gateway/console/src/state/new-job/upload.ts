/** An upload that outlives a lost connection: a zip, or files that are packed into one as they are sent. */
import { signal } from "@preact/signals";
import { makeZip, predictLength } from "client-zip";
import { DetailedError, Upload } from "tus-js-client";
import { BASE, Failure, api, failureOf, result } from "../../api/client";
import type { Chosen } from "./packing";
import { type Mark, marked, rateOf } from "./transfer";

export interface Transfer {
  name: string;
  total: number;
  sent: number;
  /** Bytes a second; undefined: not known. */
  rate: number | undefined;
  /** Whether it waits for the server to answer again. */
  isWaiting: boolean;
}

/** null: nothing is uploaded. */
export const transfer = signal<Transfer | null>(null);

const CHUNK = 8 * 2 ** 20;
/** How long to wait before the first attempt to go on, and at most. */
const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 15_000;

let cancelCurrent: () => void = () => {};

export const cancelUpload = (): void => cancelCurrent();

/** Upload a zip; returns its `data_url`, or null if it was cancelled. */
export const uploadZip = (file: File): Promise<string | null> => send(file, file.name, file.size);

/** Upload files as a zip that is never whole in memory. */
export function uploadPacked(files: readonly Chosen<File>[], name: string): Promise<string | null> {
  const entries = files.map(({ path, file }) => ({ name: path, input: file }));
  const size = Number(predictLength(entries));
  return send(inChunks(makeZip(entries).getReader()), name, size);
}

type Source = File | Pick<ReadableStreamDefaultReader<Uint8Array>, "read" | "cancel">;

function send(source: Source, name: string, total: number): Promise<string | null> {
  transfer.value = { name, total, sent: 0, rate: undefined, isWaiting: false };
  const change = (changes: Partial<Transfer>) => {
    if (transfer.value) transfer.value = { ...transfer.value, ...changes };
  };
  let marks: Mark[] = [];
  let wait = FIRST_WAIT_MS;
  let stopWaiting = () => {};

  const sending = new Promise<string | null>((done, fail) => {
    const upload = new Upload(source as File, {
      endpoint: `${BASE}/uploads`,
      uploadSize: total,
      chunkSize: CHUNK,
      headers: { "X-Requested-With": "console" },
      retryDelays: null,
      storeFingerprintForResuming: false,
      // The server may name itself by another address than the page, which the page may not ask.
      onUploadUrlAvailable: () => (upload.url = ownAddress(upload.url!)),
      onProgress: (sent) => {
        wait = FIRST_WAIT_MS;
        marks = marked(marks, { at: performance.now(), sent });
        change({ sent, rate: rateOf(marks), isWaiting: false });
      },
      onSuccess: () => done(upload.url),
      onError: (error) => {
        const failure = failureFrom(error); // asks to sign in, where it must, and the upload then goes on
        if (!isPassing(error)) return fail(failure);
        marks = [];
        change({ isWaiting: true, rate: undefined });
        stopWaiting = after(wait, () => upload.start());
        wait = Math.min(2 * wait, LONGEST_WAIT_MS);
      },
    });
    cancelCurrent = () => {
      stopWaiting();
      void upload.abort();
      done(null);
      const id = upload.url && idOf(upload.url);
      // What is not removed now, the server removes in a day.
      if (id) void api.DELETE("/uploads/{upload}", { params: { path: { upload: id } } }).catch(() => {});
    };
    upload.start();
  });
  return sending
    .then((address) => (address === null ? null : dataUrlOf(idOf(address))))
    .finally(() => {
      transfer.value = null;
      cancelCurrent = () => {};
    });
}

/** Do something after a time, or when the browser is online again; returns what prevents it. */
function after(time: number, action: () => void): () => void {
  const stop = () => {
    window.clearTimeout(timer);
    window.removeEventListener("online", go);
  };
  const go = () => {
    stop();
    action();
  };
  const timer = window.setTimeout(go, time);
  window.addEventListener("online", go);
  return stop;
}

/** Whether the server may take it at another time. */
function isPassing(error: Error | DetailedError): boolean {
  if (!(error instanceof DetailedError)) return false; // the files cannot be read
  const status = error.originalResponse?.getStatus() ?? 0;
  const isBudget = status === 429 && failureFrom(error).budget !== undefined;
  return !isBudget && ([0, 401, 408, 409, 423, 429].includes(status) || (status >= 500 && status !== 507));
}

function failureFrom(error: Error | DetailedError): Failure {
  if (!(error instanceof DetailedError) || !error.originalResponse) return new Failure(0, error.message);
  const text = error.originalResponse.getBody();
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch {
    body = { error: text || undefined };
  }
  return failureOf(error.originalResponse.getStatus(), body);
}

const idOf = (address: string): string => new URL(address, location.href).pathname.split("/").at(-1)!;
const ownAddress = (address: string): string => `${BASE}/uploads/${idOf(address)}`;

async function dataUrlOf(id: string): Promise<string> {
  const uploaded = await result(api.GET("/uploads/{upload}", { params: { path: { upload: id } } }));
  return uploaded.data_url;
}

/** The same bytes in pieces of a chunk's size, which tus-js-client need not join. */
function inChunks(reader: ReadableStreamDefaultReader<Uint8Array>): Source {
  let rest = new Uint8Array();
  const read = async (): Promise<ReadableStreamReadResult<Uint8Array>> => {
    const chunk = new Uint8Array(CHUNK);
    let filled = 0;
    while (filled < CHUNK) {
      if (!rest.length) {
        const { value, done } = await reader.read();
        if (done) break;
        rest = new Uint8Array(value);
      }
      const piece = rest.subarray(0, CHUNK - filled);
      chunk.set(piece, filled);
      filled += piece.length;
      rest = rest.subarray(piece.length);
    }
    return filled ? { value: chunk.subarray(0, filled), done: false } : { value: undefined, done: true };
  };
  return { read, cancel: (reason) => reader.cancel(reason) };
}
