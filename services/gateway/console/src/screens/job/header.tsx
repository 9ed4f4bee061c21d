import { Link } from "wouter-preact";
import { type JobFile, type JobStatus, type Kind, type Progress, isLive } from "../../api/types";
import { count, duration, moment, number } from "../../format";
import { go } from "../../hash";
import { ask } from "../../parts/dialog";
import { Facts } from "../../parts/facts";
import { attempt, tell } from "../../parts/notices";
import { Bar, StatusLabel } from "../../parts/status";
import { command, retryJob } from "../../state/job";
import { cancelJob, deleteJob } from "../../state/jobs";
import { may } from "../../state/session";
import { texts } from "../../texts";
import { epochNow, shareOf } from "./progress";

const words = texts.job;

interface HeaderProps {
  job: JobStatus;
  kind: Kind;
  title: string;
  progress: Progress | undefined;
  report: JobFile | undefined;
  /** Reads the job again: a retried one is followed from then on. */
  read: () => Promise<void>;
}

export function Header({ job, kind, title, progress, report, read }: HeaderProps) {
  return (
    <header class="job-head card">
      <Link href="/" class="hint">{`← ${words.back}`}</Link>
      <div class="head">
        <h1>
          {title} <StatusLabel status={job.status} />
        </h1>
        <div class="actions">
          <Actions job={job} kind={kind} read={read} isTraining={job.status === "IN_PROGRESS" && progress?.stage === "training"} />
          {report && <a class="button" href={report.url} download={report.name}>{words.report}</a>}
          {!isLive(job.status) && may("admin") && <Delete id={job.id} />}
        </div>
      </div>
      <p class="hint">
        <span class="id">{job.id}</span>
        {!isLive(job.status) && job.executionTime > 0 && ` · ${texts.jobs.took} ${duration(job.executionTime / 1000)}`}
        {!isLive(job.status) && job.gpu && ` · ${words.device}: ${job.gpu}`}
      </p>
      {progress && <Now job={job} progress={progress} />}
    </header>
  );
}

function Now({ job, progress }: { job: JobStatus; progress: Progress }) {
  const { stage, step, steps, epoch, loss, images_per_second: rate, eta_seconds: left } = progress;
  // The data are prepared meanwhile; all else is what it waits for.
  const isAtIt = job.status !== "IN_QUEUE" || stage === "staging" || stage === "bucket_check";
  const doing = stage && isAtIt ? texts.stage[stage] : texts.status[job.status];
  const facts = [
    step != null && steps != null && words.step(count(step), count(steps)),
    epoch != null && words.epoch(count(epochNow({ epoch, step, steps }))),
    left != null && texts.jobs.left(duration(left)),
    job.queue && texts.jobs.position(job.queue.position),
    job.queue?.estimated_start && texts.jobs.startsAt(moment(job.queue.estimated_start)),
  ].filter(Boolean);
  return (
    <div class="now">
      <div class="line">
        <strong>{doing}</strong>
        <span class="hint">{facts.join(" · ")}</span>
      </div>
      {job.status === "IN_PROGRESS" && <Bar label={doing} share={shareOf(progress)} />}
      <Facts
        facts={[
          loss != null && [words.loss, number(loss)],
          rate != null && [words.rate, words.perSecond(number(rate))],
          job.gpu !== "" && [words.device, job.gpu],
        ]}
      />
    </div>
  );
}

function Delete({ id }: { id: string }) {
  const remove = async () => {
    if (!(await ask(texts.jobs.confirmDelete(1), words.delete))) return;
    if (!(await attempt(() => deleteJob(id)))) return;
    tell(words.deleted);
    go("/", { replace: true });
  };
  return <button class="danger" onClick={() => void remove()}>{words.delete}</button>;
}

interface ActionsProps extends Pick<HeaderProps, "job" | "kind" | "read"> {
  /** Whether it is at that now. */
  isTraining: boolean;
}

function Actions({ job, kind, isTraining, read }: ActionsProps) {
  if (!may("submit")) return null;
  const order = (kind: "sample" | "save" | "stop") => async () => {
    if (kind === "stop" && !(await ask(words.confirmStop, words.stop))) return;
    if (await attempt(() => command(job.id, kind))) tell(words.sent[kind]);
  };
  const cancel = async () => {
    if (await ask(words.confirmCancel, texts.jobs.yesCancel(1))) await attempt(() => cancelJob(job.id));
  };
  const id = encodeURIComponent(job.id);
  const isDone = job.status === "COMPLETED";
  const canRetry = job.status === "FAILED" || job.status === "TIMED_OUT";
  return (
    <>
      {isTraining && <button onClick={() => void order("sample")()}>{words.sample}</button>}
      {isTraining && <button onClick={() => void order("save")()}>{words.save}</button>}
      {isTraining && <button title={words.stopHint} onClick={() => void order("stop")()}>{words.stop}</button>}
      {isLive(job.status) && <button class="danger" title={words.cancelHint} onClick={() => void cancel()}>{words.cancel}</button>}
      {isDone && kind === "train" && <Link class="button main" href={`/draw?model=${id}`}>{texts.draw.withModel}</Link>}
      {isDone && kind === "check" && <Link class="button" href={`/new?check=${id}`}>{words.trainOn}</Link>}
      {canRetry && <button onClick={() => void attempt(() => retryJob(job.id).then(read))}>{words.retry}</button>}
      <Link href={`${kind === "draw" ? "/draw" : "/new"}?from=${id}`} class="button">{words.copy}</Link>
    </>
  );
}
