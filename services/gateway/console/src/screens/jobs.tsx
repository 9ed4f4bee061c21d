import { useEffect, useMemo, useState } from "preact/hooks";
import { Link } from "wouter-preact";
import type { JobSummary, Status } from "../api/types";
import { isLive } from "../api/types";
import { duration, moment } from "../format";
import { ask } from "../parts/dialog";
import { attempt, tellProblem } from "../parts/notices";
import { Bar, StatusLabel } from "../parts/status";
import { cancelJob, deleteJob, filter, isLoaded, loadMore, next, rows, show, watch } from "../state/jobs";
import { may, signIns } from "../state/session";
import { texts } from "../texts";
import { shareOf } from "./job/progress";

const words = texts.jobs;

export function Jobs() {
  const [search, setSearch] = useState("");
  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set());
  useEffect(() => watch(tellProblem), [signIns.value]);

  const shown = useMemo(() => rows.value.filter((row) => row.id.includes(search.trim())), [rows.value, search]);
  const selected = rows.value.filter((row) => chosen.has(row.id));
  const toggle = (id: string) => setChosen(new Set(chosen.has(id) ? [...chosen].filter((each) => each !== id) : [...chosen, id]));

  return (
    <section>
      <div class="head">
        <h1>{words.title}</h1>
        <div class="tools">
          <label>
            <span>{words.filter}</span>
            <select value={filter.value} onChange={(event) => void attempt(() => show(event.currentTarget.value as Status | ""))}>
              <option value="">{words.all}</option>
              {Object.entries(texts.status).map(([status, word]) => (
                <option key={status} value={status}>{word}</option>
              ))}
            </select>
          </label>
          <input
            type="search" aria-label={words.search} placeholder={words.search} value={search}
            onInput={(event) => setSearch(event.currentTarget.value)}
          />
          {may("submit") && <Link href="/new" class="button main">{texts.nav.newJob}</Link>}
        </div>
      </div>
      {selected.length > 0 && <Selection selected={selected} done={() => setChosen(new Set())} />}
      {isLoaded.value && shown.length === 0 && <Empty isFiltered={search !== "" || filter.value !== ""} />}
      <ul class="jobs">
        {shown.map((row) => (
          <JobRow key={row.id} row={row} isChosen={chosen.has(row.id)} toggle={() => toggle(row.id)} />
        ))}
      </ul>
      {next.value !== null && (
        <button class="more" onClick={() => void attempt(loadMore)}>{words.more}</button>
      )}
    </section>
  );
}

function Empty({ isFiltered }: { isFiltered: boolean }) {
  if (isFiltered) return <p class="empty">{words.none}</p>;
  return (
    <div class="empty">
      <h2>{words.empty}</h2>
      <p>{words.emptyLead}</p>
      {may("submit") && <Link href="/new" class="button main">{texts.nav.newJob}</Link>}
    </div>
  );
}

function Selection({ selected, done }: { selected: JobSummary[]; done: () => void }) {
  const live = selected.filter((row) => isLive(row.status));
  const ended = selected.filter((row) => !isLive(row.status));
  const each = async (jobs: JobSummary[], question: string, yes: string, action: (id: string) => Promise<unknown>) => {
    if (!(await ask(question, yes))) return;
    for (const row of jobs) if (!(await attempt(() => action(row.id)))) return;
    done();
  };
  return (
    <div class="selection card" role="region" aria-label={words.selected(selected.length)}>
      <span>{words.selected(selected.length)}</span>
      {live.length > 0 && may("submit") && (
        <button onClick={() => void each(live, words.confirmCancel(live.length), words.cancel, cancelJob)}>{words.cancel}</button>
      )}
      {ended.length > 0 && may("admin") && (
        <button class="danger" onClick={() => void each(ended, words.confirmDelete(ended.length), words.delete, deleteJob)}>
          {words.delete}
        </button>
      )}
    </div>
  );
}

function JobRow({ row, isChosen, toggle }: { row: JobSummary; isChosen: boolean; toggle: () => void }) {
  return (
    <li class="job card">
      <input type="checkbox" checked={isChosen} onChange={toggle} aria-label={words.select(row.id)} />
      {row.preview ? (
        <img class="thumb" src={row.preview} alt="" width="56" height="56" loading="lazy" />
      ) : (
        <span class="thumb none" aria-hidden="true" />
      )}
      <div class="what">
        <Link href={`/jobs/${encodeURIComponent(row.id)}`} class="name">
          {texts.kind[row.kind]} <span class="id">{row.id}</span>
        </Link>
        <span class="hint">
          {words.created} {moment(row.created_at)}
          {row.ended_at && row.executionTime > 0 && ` · ${words.took} ${duration(row.executionTime / 1000)}`}
          {row.warnings && <span class="warn">{` · ${words.warnings(row.warnings)}`}</span>}
        </span>
      </div>
      <div class="how">
        <StatusLabel status={row.status} />
        <Detail row={row} />
      </div>
    </li>
  );
}

function Detail({ row }: { row: JobSummary }) {
  if (row.status === "IN_QUEUE" && row.queue) {
    const start = row.queue.estimated_start;
    return (
      <span class="hint">
        {words.position(row.queue.position)}
        {start && `, ${words.startsAt(moment(start))}`}
      </span>
    );
  }
  if (row.status === "IN_PROGRESS") {
    const left = row.progress?.eta_seconds;
    const stage = row.progress?.stage;
    return (
      <>
        <Bar label={stage ? texts.stage[stage] : texts.status.IN_PROGRESS} share={shareOf(row.progress)} />
        <span class="hint">
          {stage ? texts.stage[stage] : ""}
          {left != null && `, ${words.left(duration(left))}`}
        </span>
      </>
    );
  }
  return row.error ? <span class="hint problem-text">{row.error}</span> : null;
}
