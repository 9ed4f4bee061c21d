import { useEffect, useMemo, useState } from "preact/hooks";
import { Link, useLocation } from "wouter-preact";
import { isLive, smallOf } from "../../api/types";
import { count, moment } from "../../format";
import { PictureView } from "../../parts/picture-view";
import { Thumbnail } from "../../parts/thumbnail";
import { type Picture, type PictureJob, pictureJobs, picturesOf } from "../../state/pictures";
import { may } from "../../state/session";
import { texts } from "../../texts";
import { Selection } from "./selection";

const words = texts.gallery;

export const keyOf = ({ of, index }: Picture): string => `${of.id} ${index}`;

export function Gallery() {
  const found = useMemo(
    () => pictureJobs((job) => job.kind !== "check" && !isLive(job.status), (job) => picturesOf(job).length > 0),
    [],
  );
  useEffect(() => void found.more(), [found]);
  const [, go] = useLocation();
  const [open, setOpen] = useState<number | null>(null);
  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set());

  const { jobs, isBusy, hasMore, problem, more } = found;
  const pictures = useMemo(() => jobs.value.flatMap(picturesOf), [jobs.value]);
  const choose = (keys: readonly string[], isChosen: boolean) => {
    const others = [...chosen].filter((key) => !keys.includes(key));
    setChosen(new Set(isChosen ? [...others, ...keys] : others));
  };
  const use = ({ of, index }: Picture) => go(`/draw?from=${encodeURIComponent(of.id)}&image=${index}`);

  return (
    <section class="gallery">
      <h1>{words.title}</h1>
      {chosen.size > 0 && (
        <Selection pictures={pictures.filter((each) => chosen.has(keyOf(each)))} clear={() => setChosen(new Set())} />
      )}
      {jobs.value.map((job) => (
        <JobPictures
          key={job.id} job={job} chosen={chosen} choose={choose}
          open={(picture) => setOpen(pictures.findIndex((each) => keyOf(each) === keyOf(picture)))}
        />
      ))}
      {!isBusy.value && !hasMore.value && pictures.length === 0 && (
        <div class="empty">
          <h2>{words.empty}</h2>
          <p>{words.emptyLead}</p>
          {may("submit") && <Link href="/draw" class="button main">{texts.nav.draw}</Link>}
        </div>
      )}
      <p class="problem" role="alert">{problem.value ? (problem.value as Error).message : ""}</p>
      {hasMore.value && (
        <button class="more" aria-disabled={isBusy.value} onClick={() => void more()}>
          {isBusy.value ? texts.picture.reading : problem.value ? texts.error.again : texts.jobs.more}
        </button>
      )}
      {open !== null && <PictureView pictures={pictures} place={open} go={setOpen} use={use} />}
    </section>
  );
}

interface JobPicturesProps {
  job: PictureJob;
  chosen: ReadonlySet<string>;
  choose: (keys: readonly string[], isChosen: boolean) => void;
  open: (picture: Picture) => void;
}

function JobPictures({ job, chosen, choose, open }: JobPicturesProps) {
  const pictures = picturesOf(job);
  const keys = pictures.map(keyOf);
  const isAll = keys.every((key) => chosen.has(key));
  return (
    <section class="job-pictures" aria-label={words.of(texts.kind[job.kind], moment(job.createdAt))}>
      <div class="head">
        <h2>
          <Link href={`/jobs/${encodeURIComponent(job.id)}`}>{`${texts.kind[job.kind]}, ${moment(job.createdAt)}`}</Link>
        </h2>
        <label class="check">
          <input type="checkbox" checked={isAll} onChange={() => choose(keys, !isAll)} />
          <span>{words.all(count(keys.length))}</span>
        </label>
      </div>
      <ul class="pictures">
        {pictures.map((picture) => {
          const key = keyOf(picture);
          const { image, index } = picture;
          return (
            <li key={key} class={chosen.has(key) ? "tile chosen" : "tile"}>
              <button class="picture" aria-label={words.open(image.prompt, count(index + 1))} onClick={() => open(picture)}>
                <Thumbnail link={smallOf(image)!} width={image.width} height={image.height} />
              </button>
              <label class="choose">
                <input
                  type="checkbox" checked={chosen.has(key)} aria-label={words.choose(image.prompt, count(index + 1))}
                  onChange={(event) => choose([key], event.currentTarget.checked)}
                />
              </label>
            </li>
          );
        })}
      </ul>
    </section>
  );
}
