/** Server-sent events, which the browser resumes by itself after a lost connection. */
import { signal } from "@preact/signals";
import { checkSession, isSignedOut } from "./client";
import type { Progress, Report, Status } from "./types";

/** False while a stream tries to connect again. */
export const connected = signal(true);

/** How often a stream was connected: what failed before may be tried again. */
export const connections = signal(0);

/** How long to wait before a stream that has ended is opened anew. */
const AGAIN_MS = 3000;
/** A connection that is back sooner was not worth a word. */
const LOST_AFTER_MS = 5000;

type Stage = NonNullable<Progress["stage"]>;
interface NamedFile {
  name: string;
  url: string;
  /** There from the time on at which small pictures were made. */
  thumbnail?: string;
}

/** What each kind of event tells, as docs/endpoint.md has it. */
export interface EventData {
  status: { status: Status; run: number; error?: string };
  stage: { stage: Stage; state: "waiting" | "at work" | "done" | "failed"; attempt: number; reason?: string };
  dataset: Report;
  checkpoint: NamedFile & { step: number | null; epoch: number | null; final?: true };
  checkpoint_deleted: { step: number; epoch: number; name: string };
  sample: NamedFile & { step: number; epoch: number; prompt: string; seed: number };
  image: Partial<NamedFile> & { prompt: string; seed: number; error?: string };
  progress: Partial<Progress>;
  deleted: object;
}

export type EventType = keyof EventData;
/** `job` is there in the stream of all jobs, `at` in all but progress. */
export type StreamEvent<T extends EventType = EventType> = {
  [Type in T]: { type: Type; id: string; data: EventData[Type] & { job?: string; at?: string } };
}[T];

interface Options {
  /** Called whenever the stream is connected: what came before must be read anew. */
  onOpen?: () => void;
  /** Called when there is no stream any more: what it is of may be gone. */
  onEnd?: () => void;
  /** Whether there can be more after the server has ended the stream. */
  goesOn?: () => boolean;
}

/**
 * Follow a stream.
 *
 * @param path of the stream.
 * @param types of the events to be handled.
 * @param handle is called with each event.
 * @returns a function that ends it.
 */
export function follow<T extends EventType>(
  path: string, types: readonly T[], handle: (event: StreamEvent<T>) => void, options: Options = {},
): () => void {
  const { onOpen = () => {}, onEnd = () => {}, goesOn = () => true } = options;
  let source: EventSource | undefined;
  let again: number | undefined;
  let lost: number | undefined;
  let last = "";

  const isConnected = () => {
    window.clearTimeout(lost);
    lost = undefined;
    connected.value = true;
  };
  const isLost = () => {
    lost ??= window.setTimeout(() => {
      connected.value = false;
    }, LOST_AFTER_MS);
  };
  const open = () => {
    if (isSignedOut.value || !goesOn()) {
      again = window.setTimeout(open, AGAIN_MS); // asks nobody
      return;
    }
    source = new EventSource(last ? `${path}?last_event_id=${encodeURIComponent(last)}` : path);
    source.onopen = () => {
      connections.value += 1;
      isConnected();
      onOpen();
    };
    source.onerror = () => {
      if (source?.readyState === EventSource.CLOSED) {
        // Something else than a stream was answered: a job is over, a key is not valid, or a proxy has no server.
        void checkSession().then((isThere) => (isThere ? isConnected() : isLost()));
        onEnd();
        again = window.setTimeout(open, AGAIN_MS);
        return;
      }
      isLost();
    };
    for (const type of types) {
      source.addEventListener(type, (event: MessageEvent<string>) => {
        last = event.lastEventId || last;
        handle({ type, id: event.lastEventId, data: JSON.parse(event.data) } as StreamEvent<T>);
      });
    }
  };

  open();
  return () => {
    window.clearTimeout(again);
    source?.close();
    isConnected();
  };
}
