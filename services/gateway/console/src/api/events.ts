/** Server-sent events, which the browser resumes by itself after a lost connection. */
import { signal } from "@preact/signals";
import { checkSession } from "./client";

/** False while a stream tries to connect again. */
export const connected = signal(true);

/** How long to wait before a stream that has ended is opened anew. */
const AGAIN_MS = 3000;
/** A connection that is back sooner was not worth a word. */
const LOST_AFTER_MS = 5000;

export type Handler = (type: string, data: any, id: string) => void;

interface Options {
  /** Called whenever the stream is connected: what came before must be read anew. */
  onOpen?: () => void;
  /** Whether there can be more after the server has ended the stream. */
  goesOn?: () => boolean;
}

/**
 * Follow a stream.
 *
 * @param path of the stream.
 * @param types of the events to be handled.
 * @param handle is called with each event, its data decoded.
 * @returns a function that ends it.
 */
export function follow(path: string, types: readonly string[], handle: Handler, options: Options = {}): () => void {
  const { onOpen = () => {}, goesOn = () => true } = options;
  let source: EventSource | undefined;
  let again: number | undefined;
  let lost: number | undefined;
  let last = "";

  const isConnected = () => {
    window.clearTimeout(lost);
    lost = undefined;
    connected.value = true;
  };
  const open = () => {
    if (!goesOn()) {
      again = window.setTimeout(open, AGAIN_MS); // asks nobody
      return;
    }
    source = new EventSource(last ? `${path}?last_event_id=${encodeURIComponent(last)}` : path);
    source.onopen = () => {
      isConnected();
      onOpen();
    };
    source.onerror = () => {
      if (source?.readyState === EventSource.CLOSED) {
        // The server has answered something else than a stream, as it does when a job is over.
        isConnected();
        void checkSession();
        again = window.setTimeout(open, AGAIN_MS);
        return;
      }
      lost ??= window.setTimeout(() => {
        connected.value = false;
      }, LOST_AFTER_MS);
    };
    for (const type of types) {
      source.addEventListener(type, (event: MessageEvent<string>) => {
        last = event.lastEventId || last;
        handle(type, JSON.parse(event.data), event.lastEventId);
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
