import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Link, useSearch } from "wouter-preact";
import type { JobSummary } from "../api/types";
import { isLive } from "../api/types";
import { duration, moment } from "../format";
import { go } from "../hash";
import { ask } from "../parts/dialog";
import { attempt } from "../parts/notices";
import { Bar, StatusLabel } from "../parts/status";
import { Thumbnail } from "../parts/thumbnail";
import { useTitle } from "../parts/title";
import { Unread } from "../parts/unread";
import { cancelJob, deleteJob, listed, load, next, problem, rows, show, watch } from "../state/jobs";
import { may, signIns } from "../state/session";
import { type Wanted, addressOf, sameJobs, wantedIn } from "../state/wanted";
import { texts } from "../texts";
import { shareOf } from "./job/progress";

const words = texts.jobs;

/** How long a person rests before what is typed is searched for. */
const REST_MS = 250;

export function Jobs() {
  useTitle(words.title);
  const address = useSearch();
  const asked = useMemo(() => wantedIn(address), [address]);
  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set());
  useEffect(watch, [signIns.value]);
  useEffect(() => show(asked), [asked, signIns.value]);

  const isShown = listed.value !== null && sameJobs(listed.value, asked);
  // Those of before stay until the answer is there, and not in its place.
  const shown = isShown || !problem.value ? rows.value : [];
  const selected = shown.filter((row) => chosen.has(row.id));
  const toggle = (id: string) => setChosen(new Set(chosen.has(id) ? [...chosen].filter((each) => each !== id) : [...chosen, id]));

  return (
    <section aria-busy={!isShown && !problem.value}>
      <div class="head">
        <h1>{words.title}</h1>
        <div class="tools">
          <Filter name={words.kind} choices={texts.kind} value={asked.kind} set={(kind) => go(addressOf({ ...asked, from: "", kind }))} />
          <Filter name={words.status} choices={texts.status} value={asked.status} set={(status) => go(addressOf({ ...asked, from: "", status }))} />
          <Search asked={asked} />
          {may("submit") && <Link href="/new" class="button main">{texts.nav.newJob}</Link>}
        </div>
      </div>
      {selected.length > 0 && <Selection selected={selected} done={() => setChosen(new Set())} />}
      {problem.value && <Unread problem={problem.value} again={load} />}
      {isShown && !problem.value && rows.value.length === 0 && <Empty isFiltered={addressOf(asked) !== "/"} />}
      <ul class="jobs">
        {shown.map((row) => (
          <JobRow key={row.id} row={row} isChosen={chosen.has(row.id)} toggle={() => toggle(row.id)} />
        ))}
      </ul>
      <Pages asked={asked} />
    </section>
  );
}

interface FilterProps<T extends string> {
  name: string;
  choices: Readonly<Record<T, string>>;
  /** Empty: any. */
  value: T | "";
  set: (value: T | "") => void;
}

function Filter<T extends string>({ name, choices, value, set }: FilterProps<T>) {
  return (
    <label>
      <span>{name}</span>
      <select value={value} onChange={(event) => set(event.currentTarget.value as T | "")}>
        <option value="">{words.all}</option>
        {Object.entries<string>(choices).map(([choice, word]) => (
          <option key={choice} value={choice}>{word}</option>
        ))}
      </select>
    </label>
  );
}

function Search({ asked }: { asked: Wanted }) {
  const [typed, setTyped] = useState(asked.id);
  const timer = useRef<number>();
  useEffect(() => () => window.clearTimeout(timer.current), []);
  useEffect(() => setTyped(asked.id), [asked.id]);
  const search = (text: string) => {
    setTyped(text);
    window.clearTimeout(timer.current);
    timer.current = window.setTimeout(() => go(addressOf({ ...asked, from: "", id: text.trim().toLowerCase() }), { replace: true }), REST_MS);
  };
  return (
    <input
      type="search" aria-label={words.search} placeholder={words.search} value={typed} spellcheck={false} autocomplete="off"
      onInput={(event) => search(event.currentTarget.value)}
    />
  );
}

/** The way to older jobs, and back to the newest. */
function Pages({ asked }: { asked: Wanted }) {
  const toTop = () => window.scrollTo(0, 0);
  if (!asked.from && next.value === null) return null;
  return (
    <nav class="pages" aria-label={words.pages}>
      {asked.from && <Link class="button" href={addressOf({ ...asked, from: "" })} onClick={toTop}>{words.newest}</Link>}
      {next.value !== null && <Link class="button" href={addressOf({ ...asked, from: next.value })} onClick={toTop}>{words.older}</Link>}
    </nav>
  );
}

function Empty({ isFiltered }: { isFiltered: boolean }) {
  if (isFiltered) return <p class="empty">{words.none}</p>;
  return (
    <div class="empty">
      <h2>{words.empty}</h2>
      <p>{may("submit") ? words.emptyLead : words.emptyReader}</p>
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
        <button onClick={() => void each(live, words.confirmCancel(live.length), words.yesCancel(live.length), cancelJob)}>{words.cancel}</button>
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
        <Thumbnail class="thumb" link={row.preview} width={56} height={56} />
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
