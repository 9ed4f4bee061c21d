/** What was drawn before, and what is being drawn, newest first. */
import { useEffect, useMemo, useState } from "preact/hooks";
import { Link } from "wouter-preact";
import { isMissing } from "../../api/client";
import { type JobStatus, type Progress, isLive, smallOf } from "../../api/types";
import { count, moment } from "../../format";
import { ask } from "../../parts/dialog";
import { attempt } from "../../parts/notices";
import { PictureView } from "../../parts/picture-view";
import { Bar, StatusLabel } from "../../parts/status";
import { Thumbnail } from "../../parts/thumbnail";
import type { StreamEvent } from "../../api/events";
import { followJob } from "../../state/job";
import { cancelJob } from "../../state/jobs";
import { type Picture, type PictureJob, imagesOf, keyOf, modelOf, nameOfModel, picturesOf } from "../../state/pictures";
import { may } from "../../state/session";
import { texts } from "../../texts";
import { shareOf } from "../job/progress";
import { entriesOf, settingsOf } from "./settings";

const words = texts.draw;
/** A browser has few connections to a server, and each followed job holds one. */
const FOLLOWED = 2;

interface HistoryProps {
  jobs: readonly PictureJob[];
  /** Called with a job as it has become; undefined: it was deleted. */
  ended: (id: string, job: JobStatus | undefined) => void;
  /** Fill the form with a job's settings, or with those of its image at this place. */
  use: (job: JobStatus, index?: number) => void;
}

export function History({ jobs, ended, use }: HistoryProps) {
  const [open, setOpen] = useState<string | null>(null);
  const pictures = useMemo(() => jobs.flatMap(({ job }) => picturesOf(job)), [jobs]);
  // The oldest is drawn first.
  const followed = jobs.filter((each) => isLive(each.job.status)).slice(-FOLLOWED);
  const place = pictures.findIndex((each) => keyOf(each) === open);
  const go = (next: number | null) => setOpen(next === null ? null : keyOf(pictures[next]!));
  const useOne = (picture: Picture) => {
    setOpen(null);
    use(picture.job, picture.index);
  };
  return (
    <>
      <ol class="drawings">
        {jobs.map((each) => (
          <li key={each.job.id}>
            {followed.includes(each) ? (
              <Followed drawing={each} ended={ended} use={use} />
            ) : (
              <Drawing drawing={each} use={use} open={(picture) => setOpen(keyOf(picture))} />
            )}
          </li>
        ))}
      </ol>
      {place >= 0 && <PictureView pictures={pictures} place={place} go={go} use={useOne} />}
    </>
  );
}

function Followed({ drawing, ended, use }: { drawing: PictureJob } & Pick<HistoryProps, "ended" | "use">) {
  const { id } = drawing.job;
  const followed = useMemo(() => followJob(id, drawing.kind), [id]);
  useEffect(() => followed.stop, [followed]);
  const isDeleted = isMissing(followed.problem.value);
  const job = followed.job.value ?? drawing.job;
  useEffect(() => {
    if (isDeleted || !isLive(job.status)) ended(id, isDeleted ? undefined : job);
  }, [job.status, isDeleted]);
  const images = followed.events.value.filter((event) => event.type === "image");
  return <Drawing drawing={{ ...drawing, job }} use={use} arrived={images} />;
}

interface DrawingProps {
  drawing: PictureJob;
  use: HistoryProps["use"];
  open?: (picture: Picture) => void;
  /** Images that are there before the job's end. */
  arrived?: readonly StreamEvent<"image">[];
}

function Drawing({ drawing, use, open, arrived = [] }: DrawingProps) {
  const { job, createdAt } = drawing;
  const [entry] = entriesOf(job.input);
  const settings = settingsOf(entry ?? {});
  const cancel = async () => {
    if (await ask(texts.job.confirmCancel, texts.jobs.yesCancel(1))) await attempt(() => cancelJob(job.id));
  };
  return (
    <article class="card drawing" aria-label={words.drawing(moment(createdAt))}>
      <div class="head">
        <p class="hint">
          <Link href={`/jobs/${encodeURIComponent(job.id)}`}>{moment(createdAt)}</Link>
          {` · ${nameOfModel(modelOf(job))}`}
        </p>
        <StatusLabel status={job.status} />
      </div>
      <p class="clamp" dir="auto" title={settings.prompt}>{settings.prompt || words.noPrompt}</p>
      <p class="hint">
        {`${settings.width} × ${settings.height} · ${words.steps(settings.num_inference_steps)} · ${settings.scheduler}`}
      </p>
      {isLive(job.status) && <Waiting job={job} />}
      {job.error && <p class="problem">{job.error}</p>}
      {isLive(job.status) ? <Arriving job={job} arrived={arrived} /> : <Results job={job} open={open} />}
      {may("submit") && (
        <div class="actions">
          {entry && <button onClick={() => use(job)}>{words.again}</button>}
          {isLive(job.status) && <button class="danger" onClick={() => void cancel()}>{texts.job.cancel}</button>}
        </div>
      )}
    </article>
  );
}

function Waiting({ job }: { job: JobStatus }) {
  const progress = job.output as Partial<Progress>;
  const stage = progress.stage ? texts.stage[progress.stage] : texts.status[job.status];
  if (job.queue && job.status === "IN_QUEUE") {
    const start = job.queue.estimated_start;
    return (
      <p class="hint">
        {texts.jobs.position(job.queue.position)}
        {start && `, ${texts.jobs.startsAt(moment(start))}`}
      </p>
    );
  }
  return (
    <>
      <p class="hint">{stage}</p>
      <Bar label={stage} share={shareOf(progress)} />
    </>
  );
}

/** A place for each image that was asked for, filled as they come. */
function Arriving({ job, arrived }: { job: JobStatus; arrived: readonly StreamEvent<"image">[] }) {
  const wanted = entriesOf(job.input).map(settingsOf).flatMap((entry) => Array(Number(entry.num_outputs)).fill(entry));
  const newest = arrived.slice(-wanted.length);
  return (
    <ul class="pictures" aria-busy="true">
      {wanted.map((entry, index) => {
        const { url, thumbnail = url, error, prompt = "" } = newest[index]?.data ?? {};
        return (
          <li key={index} class="tile">
            {thumbnail && <Thumbnail link={thumbnail} alt={prompt} width={entry.width} height={entry.height} />}
            {error && <span class="problem-text">{error}</span>}
          </li>
        );
      })}
    </ul>
  );
}

function Results({ job, open }: { job: JobStatus; open: DrawingProps["open"] }) {
  const images = imagesOf(job);
  if (!images.length) return null;
  return (
    <ul class="pictures">
      {images.map((image, index) => (
        <li key={index} class="tile">
          {image.image ? (
            <button class="picture" aria-label={words.open(count(index + 1), String(image.seed))} onClick={() => open?.({ job, index, image })}>
              <Thumbnail link={smallOf(image)!} width={image.width} height={image.height} />
            </button>
          ) : (
            <span class="problem-text">{image.error}</span>
          )}
        </li>
      ))}
    </ul>
  );
}
