/** What was drawn before, and what is being drawn, newest first. */
import { useEffect, useMemo, useState } from "preact/hooks";
import { Link } from "wouter-preact";
import { type Image, type JobStatus, type Progress, isLive, smallOf } from "../../api/types";
import { count, moment } from "../../format";
import { ask } from "../../parts/dialog";
import { attempt } from "../../parts/notices";
import { PictureView } from "../../parts/picture-view";
import { Bar, StatusLabel } from "../../parts/status";
import { Thumbnail } from "../../parts/thumbnail";
import type { StreamEvent } from "../../api/events";
import { followJob } from "../../state/job";
import { cancelJob } from "../../state/jobs";
import { type Picture, type PictureJob, imagesOf, modelOf, nameOfModel, picturesOf } from "../../state/pictures";
import { may } from "../../state/session";
import { texts } from "../../texts";
import { shareOf } from "../job/progress";
import { entriesOf, settingsOf } from "./settings";

const words = texts.draw;
/** A browser has few connections to a server, and each followed job holds one. */
const FOLLOWED = 2;

interface HistoryProps {
  jobs: readonly PictureJob[];
  /** Called with a job as it has become. */
  changed: (job: JobStatus) => void;
  /** Fill the form with a job's settings, or with those of one of its images. */
  use: (job: JobStatus, image?: Image) => void;
}

export function History({ jobs, changed, use }: HistoryProps) {
  const [open, setOpen] = useState<string | null>(null);
  const pictures = useMemo(() => jobs.flatMap(picturesOf), [jobs]);
  // The oldest is drawn first.
  const followed = jobs.filter((each) => isLive(each.job.status)).slice(-FOLLOWED);
  const place = pictures.findIndex((each) => keyOf(each) === open);
  const go = (next: number | null) => setOpen(next === null ? null : keyOf(pictures[next]!));
  const useOne = (picture: Picture) => {
    setOpen(null);
    use(picture.of.job, picture.image);
  };
  return (
    <>
      <ol class="drawings">
        {jobs.map((each) => (
          <li key={each.id}>
            {followed.includes(each) ? (
              <Followed drawing={each} changed={changed} use={use} />
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

const keyOf = ({ of, index }: Picture): string => `${of.id} ${index}`;

function Followed({ drawing, changed, use }: { drawing: PictureJob; changed: HistoryProps["changed"]; use: HistoryProps["use"] }) {
  const followed = useMemo(() => followJob(drawing.id, { withCurves: false }), [drawing.id]);
  useEffect(() => followed.stop, [followed]);
  const job = followed.job.value ?? drawing.job;
  useEffect(() => {
    if (!isLive(job.status)) changed(job);
  }, [job.status]);
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
  const { id, job, createdAt } = drawing;
  const [entry] = entriesOf(job.input);
  const settings = settingsOf(entry ?? {});
  const cancel = async () => {
    if (await ask(texts.job.confirmCancel, texts.job.cancel)) await attempt(() => cancelJob(id));
  };
  return (
    <article class="card drawing" aria-label={words.drawing(moment(createdAt))}>
      <div class="head">
        <p class="hint">
          <Link href={`/jobs/${encodeURIComponent(id)}`}>{moment(createdAt)}</Link>
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
      {isLive(job.status) ? <Arriving job={job} arrived={arrived} /> : <Results drawing={drawing} open={open} />}
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

function Results({ drawing, open }: { drawing: PictureJob; open: DrawingProps["open"] }) {
  const images = imagesOf(drawing.job);
  if (!images.length) return null;
  return (
    <ul class="pictures">
      {images.map((image, index) => (
        <li key={index} class="tile">
          {image.image ? (
            <button class="picture" aria-label={words.open(count(index + 1), String(image.seed))} onClick={() => open?.({ of: drawing, index, image })}>
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
