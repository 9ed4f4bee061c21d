import { useEffect, useMemo } from "preact/hooks";
import { Link } from "wouter-preact";
import { isMissing } from "../../api/client";
import { type JobStatus, type Kind, type Progress, type Results, isJobId, isLive, jobIdIn } from "../../api/types";
import { useTitle } from "../../parts/title";
import { followJob } from "../../state/job";
import { percent } from "../../format";
import { texts } from "../../texts";
import { Checkpoints, Files } from "./checkpoints";
import { Curves } from "./curves";
import { Dataset } from "./dataset";
import { Header } from "./header";
import { Log } from "./log";
import { Images } from "./images";
import { shareOf } from "./progress";
import { Samples } from "./samples";

const words = texts.job;

export function JobPage({ id: text }: { id: string }) {
  const id = jobIdIn(text);
  return id === undefined ? <Missing text={words.notFound} /> : <Known id={id} />;
}

function Missing({ text }: { text: string }) {
  return (
    <div class="empty" role="alert">
      <h1>{text}</h1>
      <Link href="/">{texts.error.home}</Link>
    </div>
  );
}

function Known({ id }: { id: string }) {
  const followed = useMemo(() => followJob(id), [id]);
  useEffect(() => followed.stop, [followed]);

  const [job, kind, points] = [followed.job.value, followed.kind.value, followed.points.value];
  const title = words.title(kind && texts.kind[kind], id.slice(0, 8));
  useTitle([job && standOf(job), title].filter(Boolean).join(" · "));
  if (!job) {
    const { value: problem } = followed.problem;
    if (!problem) return <p class="empty" role="status">{texts.picture.reading}</p>;
    return <Missing text={isMissing(problem) ? words.notFound : (problem as Error).message} />;
  }
  const shown = partsOf(job, kind);
  return (
    <article class="job-page">
      <Header job={job} kind={shown.kind} title={title} progress={shown.progress} report={shown.report} read={followed.read} />
      {job.error && <Problem kind="error" title={words.error} lines={[job.error]} />}
      {shown.kind === "train" && (isLive(job.status) || shown.samples.length > 0) && <Samples samples={shown.samples} />}
      <Images job={job} />
      {shown.kind === "train" && points && (isLive(job.status) || points.length > 1) && (
        <Curves points={points} checkpoints={shown.checkpoints.map((each) => each.step)} />
      )}
      <Checkpoints job={job} read={followed.read} checkpoints={shown.checkpoints} files={shown.files} finalUrl={shown.finalUrl} />
      <Files files={shown.files} />
      <Dataset report={shown.dataset} source={datasetOf(job, shown.kind)} />
      {shown.warnings.length > 0 && <Problem kind="warning" title={words.warnings} lines={shown.warnings} />}
      <Log events={followed.events.value} />
      <details class="card">
        <summary>{words.settings}</summary>
        <pre tabIndex={0}>{JSON.stringify(job.input, null, 2)}</pre>
      </details>
    </article>
  );
}

/** In a word, for who has the page in another tab. */
function standOf({ status, output }: JobStatus): string {
  const share = status === "IN_PROGRESS" ? shareOf(output as Progress) : undefined;
  return share === undefined ? texts.status[status] : percent(Math.floor(100 * share) / 100);
}

function Problem({ kind, title, lines }: { kind: "error" | "warning"; title: string; lines: readonly string[] }) {
  return (
    <section class={`card problem-box ${kind}`}>
      <h2>{title}</h2>
      {lines.length === 1 ? <p>{lines[0]}</p> : <ul>{lines.map((line) => <li key={line}>{line}</li>)}</ul>}
    </section>
  );
}

/** Whose pictures were left out by a change: those of a check, or of the check that a job is trained on. */
function datasetOf(job: JobStatus, kind: Kind): string | undefined {
  if (kind === "check") return isLive(job.status) ? undefined : job.id;
  const { train } = job.input as { train?: { data_url?: string } };
  const source = train?.data_url ?? "";
  return isJobId(source) ? source : undefined;
}

/** A job's output has one shape while it runs and another when it has ended. */
function partsOf(job: JobStatus, known: Kind | undefined) {
  const isRunning = isLive(job.status);
  const progress = isRunning ? (job.output as Progress) : undefined;
  const results = isRunning ? undefined : (job.output as Results);
  const trained = results?.train ?? undefined;
  return {
    progress,
    kind: known ?? ("train" in job.input ? "train" as const : "draw" as const),
    samples: progress?.samples ?? trained?.samples ?? [],
    checkpoints: trained?.checkpoints ?? [],
    finalUrl: trained?.checkpoint_url ?? null,
    files: results?.artifacts ?? [],
    report: results?.artifacts?.find((file) => file.kind === "report"),
    dataset: progress?.dataset ?? results?.dataset ?? {},
    warnings: progress?.warnings ?? trained?.warnings ?? results?.warnings ?? [],
  };
}
