import type { BusyWorker, FreePlaces } from "../../api/types";
import { count, duration, moment } from "../../format";
import { attempt } from "../../parts/notices";
import { Facts } from "../../parts/facts";
import { Table } from "../../parts/table";
import { type Paged, moreWorkers } from "../../state/system";
import { texts } from "../../texts";
import { isSilent } from "./findings";

const words = texts.system.workers;

export function Workers({ busy, free }: { busy: Paged<BusyWorker>; free: readonly FreePlaces[] }) {
  return (
    <section class="card">
      <h2>{words.title}</h2>
      {busy.items.length ? (
        <Table
          label={words.title} columns={words.columns} rows={busy.items} kind="list"
          keyOf={(worker) => `${worker.job} ${worker.stage}`} cells={cells}
        />
      ) : (
        <p class="none">{words.none}</p>
      )}
      {busy.next && <button class="more" onClick={() => void attempt(moreWorkers)}>{texts.jobs.more}</button>}
      <h3>{words.free}</h3>
      <p class="hint">{words.freeHint}</p>
      <Facts
        kind="numbers"
        facts={free.map(({ service, places }) => [words.services[service], places === null ? texts.system.unknown : count(places)])}
      />
    </section>
  );
}

const cells = (worker: BusyWorker) => [
  <>
    <span class="name">{worker.worker}</span>
    <span class="hint">{[worker.gpu, worker.version && words.version(worker.version)].filter(Boolean).join(" · ")}</span>
  </>,
  <>
    <span>{texts.stage[worker.stage]}</span>
    {worker.attempt > 1 && <span class="hint">{words.attempt(count(worker.attempt))}</span>}
  </>,
  <span class="id">{worker.job}</span>,
  worker.claimed_at ? moment(worker.claimed_at) : texts.system.unknown,
  worker.silent_seconds === null ? (
    texts.system.unknown
  ) : (
    <span class={isSilent(worker) ? "problem-text" : ""}>{words.ago(duration(worker.silent_seconds))}</span>
  ),
];
