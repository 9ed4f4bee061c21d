/** What one tab does with a job that has ended, which no stream tells the others of: each would hold a connection. */

interface Told {
  job: string;
  isDeleted: boolean;
}

const channel = new BroadcastChannel("jobs");

export const tellOtherTabs = (told: Told): void => channel.postMessage(told);

/** Calls with what another tab has done; returns a function that ends it. */
export function onOtherTab(handle: (told: Told) => void): () => void {
  const listen = (event: MessageEvent<Told>) => handle(event.data);
  channel.addEventListener("message", listen);
  return () => channel.removeEventListener("message", listen);
}
