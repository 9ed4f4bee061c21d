/** What operators see of the whole service, as it was when it was last read. */
import { signal } from "@preact/signals";
import { api, result } from "../api/client";
import type { BusyWorker, DeadLetter, Disk, FreePlaces, GivenUpWebhook, Queues } from "../api/types";

/** A list of which more may be read. */
export interface Paged<T> {
  items: readonly T[];
  next: string | null;
}

export interface System {
  /** When it was read. */
  at: Date;
  busy: Paged<BusyWorker>;
  free: readonly FreePlaces[];
  queues: Queues;
  deadLetters: Paged<DeadLetter>;
  webhooks: Paged<GivenUpWebhook>;
  disk: Disk;
}

const LIMIT = 20;

/** Empty: not read yet. */
export const system = signal<System | null>(null);
export const isReading = signal(false);
export const problem = signal<Error | null>(null);

/** Read the first page of everything again. */
export async function load(): Promise<void> {
  if (isReading.value) return;
  isReading.value = true;
  try {
    const [workers, queues, letters, webhooks, disk] = await Promise.all([
      readWorkers(),
      result(api.GET("/admin/queues")),
      readDeadLetters(),
      readWebhooks(),
      result(api.GET("/admin/disk")),
    ]);
    system.value = {
      at: new Date(),
      busy: { items: workers.busy, next: workers.next },
      free: workers.free,
      queues,
      deadLetters: { items: letters.dead_letters, next: letters.next },
      webhooks: { items: webhooks.webhooks, next: webhooks.next },
      disk,
    };
    problem.value = null;
  } catch (error) {
    problem.value = error as Error;
  } finally {
    isReading.value = false;
  }
}

/** Read everything now, and whenever the page is looked at again; returns a function that ends it. */
export function watch(): () => void {
  const look = () => {
    if (document.visibilityState === "visible") void load();
  };
  look();
  document.addEventListener("visibilitychange", look);
  return () => document.removeEventListener("visibilitychange", look);
}

const readWorkers = (cursor?: string) => result(api.GET("/admin/workers", page(cursor)));
const readDeadLetters = (cursor?: string) => result(api.GET("/admin/dead-letters", page(cursor)));
const readWebhooks = (cursor?: string) => result(api.GET("/admin/webhooks", page(cursor)));

const page = (cursor?: string) => ({ params: { query: { limit: LIMIT, ...(cursor && { cursor }) } } });

export async function moreWorkers(): Promise<void> {
  const { busy, next } = await readWorkers(system.value?.busy.next ?? undefined);
  change(({ busy: known }) => ({ busy: { items: [...known.items, ...busy], next } }));
}

export async function moreDeadLetters(): Promise<void> {
  const { dead_letters, next } = await readDeadLetters(system.value?.deadLetters.next ?? undefined);
  change(({ deadLetters }) => ({ deadLetters: { items: [...deadLetters.items, ...dead_letters], next } }));
}

export async function moreWebhooks(): Promise<void> {
  const { webhooks, next } = await readWebhooks(system.value?.webhooks.next ?? undefined);
  change(({ webhooks: known }) => ({ webhooks: { items: [...known.items, ...webhooks], next } }));
}

export async function requeueLetter(letter: string): Promise<void> {
  await result(api.POST("/admin/dead-letters/{letter}/requeue", { params: { path: { letter } } }));
  forgetLetter(letter);
}

export async function deleteLetter(letter: string): Promise<void> {
  await result(api.DELETE("/admin/dead-letters/{letter}", { params: { path: { letter } } }));
  forgetLetter(letter);
}

export async function resendWebhook({ job, webhook }: GivenUpWebhook): Promise<void> {
  await result(api.POST("/admin/webhooks/{job}/{webhook}/resend", { params: { path: { job, webhook } } }));
  change(({ webhooks }) => ({
    webhooks: { ...webhooks, items: webhooks.items.filter((each) => each.webhook !== webhook) },
  }));
}

function forgetLetter(id: string): void {
  change(({ deadLetters }) => ({
    deadLetters: { ...deadLetters, items: deadLetters.items.filter((each) => each.id !== id) },
  }));
}

function change(how: (known: System) => Partial<System>): void {
  if (system.value) system.value = { ...system.value, ...how(system.value) };
}
