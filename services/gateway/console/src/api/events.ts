/** Server-sent events, which the browser resumes by itself after a lost connection. */
import { signal } from "@preact/signals";

/** False while a stream tries to connect again. */
export const connected = signal(true);

/** How long to wait before a stream that the browser gave up is opened anew. */
const AGAIN_MS = 3000;

export type Handler = (type: string, data: any, id: string) => void;

/**
 * Follow a stream.
 *
 * @param path of the stream.
 * @param types of the events to be handled.
 * @param handle is called with each event, its data decoded.
 * @param onOpen is called whenever the stream is connected: what happened before it must be read anew
 *   if the stream did not begin at the beginning.
 * @returns a function that ends it.
 */
export function follow(path: string, types: readonly string[], handle: Handler, onOpen: () => void = () => {}): () => void {
  let source: EventSource | undefined;
  let timer: number | undefined;
  let last = "";

  const open = () => {
    source = new EventSource(last ? `${path}?last_event_id=${encodeURIComponent(last)}` : path);
    source.onopen = () => {
      connected.value = true;
      onOpen();
    };
    source.onerror = () => {
      // Closed: the server has answered something else than a stream, as it does when a job is over.
      if (source?.readyState === EventSource.CLOSED) timer = window.setTimeout(open, AGAIN_MS);
      else connected.value = false;
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
    window.clearTimeout(timer);
    source?.close();
    connected.value = true;
  };
}
