import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { BusyWorker, DeadLetter, GivenUpWebhook } from "../../api/types";
import type { System } from "../../state/system";
import { excerptOf, findings, usedShare } from "./findings";

beforeEach(() => vi.stubGlobal("navigator", { languages: ["en"] }));
afterEach(() => vi.unstubAllGlobals());

const WELL: System = {
  at: new Date(),
  busy: { items: [], next: null },
  free: [],
  queues: { stages: [], lines: [], broker: [{ queue: "trainer", messages: 0, consumers: 0 }] },
  deadLetters: { items: [], next: null },
  webhooks: { items: [], next: null },
  disk: {
    version: "1.0.0",
    store: { total_bytes: 1e12, free_bytes: 5e11, total_files: 1000, free_files: 900 },
    kept: { uploads: 0, datasets: 0, models: 0 },
    database_bytes: 1,
  },
};
const trainer = (silent: number | null): BusyWorker => ({
  worker: "trainer/host-1", service: "trainer", job: "a", stage: "training", attempt: 1, claimed_at: null,
  silent_seconds: silent, gpu: null, version: null,
});
const broker = (messages: number | null, consumers: number | null): System["queues"] => ({
  ...WELL.queues, broker: [{ queue: "trainer", messages, consumers }],
});
const store = WELL.disk.store!;

test("where all is well nothing is found", () => expect(findings(WELL)).toEqual([]));

test.each<[string, Partial<System>, string[]]>([
  ["work that nobody takes", { queues: broker(2, 0) }, ["2 messages wait on trainer, and nobody is there to take them."]],
  ["work that a busy worker will take", { queues: broker(2, 0), busy: { items: [trainer(3)], next: null } }, []],
  ["work that is being taken", { queues: broker(2, 1) }, []],
  ["a broker that is away", { queues: broker(null, null) }, ["The broker does not answer."]],
  ["a silent worker", { busy: { items: [trainer(90)], next: null } }, ["trainer/host-1 has been silent for 1 min 30 sec."]],
  ["a worker of another gateway", { busy: { items: [trainer(null)], next: null } }, []],
  ["one dead letter", { deadLetters: { items: [{} as DeadLetter], next: null } }, ["1 message was given up."]],
  ["many webhooks", { webhooks: { items: [{}, {}] as GivenUpWebhook[], next: "x" } }, ["More than 2 webhooks were given up."]],
  ["a full disk", { disk: { ...WELL.disk, store: { ...store, free_bytes: 1e9 } } }, ["The store's disk has 1 GB left."]],
  ["no more files", { disk: { ...WELL.disk, store: { ...store, free_files: 4 } } }, ["The store's disk has room for 4 more files (inodes)."]],
  ["a store elsewhere", { disk: { ...WELL.disk, store: null } }, []],
])("%s", (_, changes, found) => expect(findings({ ...WELL, ...changes })).toEqual(found));

test.each([
  [25, 100, 0.75],
  [120, 100, 0],
  [0, 0, 0],
])("%d of %d free", (free, total, used) => expect(usedShare(free, total)).toBe(used));

test("a letter's fields are one line", () =>
  expect(excerptOf({ stage: "training", number: 12_000 })).toBe("stage training · number 12,000"));
