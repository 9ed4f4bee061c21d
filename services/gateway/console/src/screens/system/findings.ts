/** What an operator should look at first. */
import type { BrokerQueue, BusyWorker, Disk, Service } from "../../api/types";
import { bytes, count, duration } from "../../format";
import type { System } from "../../state/system";
import { texts } from "../../texts";

const words = texts.system.findings;

/** A worker of which nothing was heard for so many seconds has missed several heartbeats. */
export const SILENT_SECONDS = 60;
/** Less of a disk than this share is little. */
const LITTLE = 0.05;
/** The queues that each service takes its work from. */
const QUEUES: Readonly<Record<string, Service>> = {
  fetcher: "fetcher",
  trainer: "trainer",
  "inferencer.samples": "inferencer",
  "inferencer.results": "inferencer",
  "notifier.publish": "notifier",
  "notifier.webhooks": "notifier",
};

export const isSilent = (worker: BusyWorker): boolean => (worker.silent_seconds ?? 0) > SILENT_SECONDS;

/** A sentence for each; none: nothing is known to be wrong. */
export function findings({ busy, queues, deadLetters, webhooks, disk }: System): string[] {
  const silent = busy.items.filter(isSilent);
  return [
    ...(queues.broker.some((queue) => queue.messages === null) ? [words.broker] : []),
    ...queues.broker.filter((queue) => isDeserted(queue, busy.items)).map((queue) =>
      words.deserted(queue.messages ?? 0, count(queue.messages ?? 0), queue.queue),
    ),
    ...silent.map((worker) => words.silent(worker.worker, duration(worker.silent_seconds ?? 0))),
    ...(deadLetters.items.length ? [words.deadLetters(deadLetters.items.length, deadLetters.next !== null)] : []),
    ...(webhooks.items.length ? [words.webhooks(webhooks.items.length, webhooks.next !== null)] : []),
    ...littleRoom(disk),
  ];
}

/** Whether messages wait that nobody takes, and that no busy worker will take when it is done. */
function isDeserted({ queue, messages, consumers }: BrokerQueue, busy: readonly BusyWorker[]): boolean {
  const service = QUEUES[queue];
  return !!messages && consumers === 0 && !busy.some((worker) => worker.service === service);
}

function littleRoom({ store }: Disk): string[] {
  if (!store) return [];
  const isLow = (free: number | null, total: number | null) => free !== null && !!total && free / total < LITTLE;
  return [
    ...(isLow(store.free_bytes, store.total_bytes) ? [words.bytes(bytes(store.free_bytes))] : []),
    ...(isLow(store.free_files, store.total_files) ? [words.files(count(store.free_files ?? 0))] : []),
  ];
}

/** How much of a disk is used, from 0 to 1. */
export const usedShare = (free: number, total: number): number =>
  total > 0 ? Math.min(1, Math.max(0, 1 - free / total)) : 0;

/** A letter's fields in one line. */
export const excerptOf = (excerpt: Readonly<Record<string, string | number>>): string =>
  Object.entries(excerpt)
    .map(([name, value]) => `${name} ${typeof value === "number" ? count(value) : value}`)
    .join(" · ");
