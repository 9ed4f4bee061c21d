import { useEffect, useMemo, useState } from "preact/hooks";
import { Link } from "wouter-preact";
import { ENDED, smallOf } from "../../api/types";
import { count, moment } from "../../format";
import { More } from "../../parts/more";
import { PictureView } from "../../parts/picture-view";
import { Thumbnail } from "../../parts/thumbnail";
import { useTitle } from "../../parts/title";
import { type Picture, type PictureJob, keyOf, pictureJobs, picturesOf, withoutDeleted } from "../../state/pictures";
import { may } from "../../state/session";
import { texts } from "../../texts";
import { Selection } from "./selection";

const words = texts.gallery;

export function Gallery() {
  useTitle(words.title);
  const found = useMemo(() => pictureJobs({ kind: ["draw", "train"], status: ENDED }, ({ job }) => picturesOf(job).length > 0), []);
  useEffect(() => void found.more(), [found]);
  useEffect(() => withoutDeleted(found), [found]);
  const [open, setOpen] = useState<string | null>(null);
  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set());

  const { items: jobs, isEmpty } = found;
  const pictures = useMemo(() => jobs.value.flatMap(({ job }) => picturesOf(job)), [jobs.value]);
  const chosenPictures = pictures.filter((each) => chosen.has(keyOf(each)));
  const place = pictures.findIndex((each) => keyOf(each) === open);
  const choose = (keys: readonly string[], isChosen: boolean) => {
    const others = [...chosen].filter((key) => !keys.includes(key));
    setChosen(new Set(isChosen ? [...others, ...keys] : others));
  };

  return (
    <section class="gallery">
      <h1>{words.title}</h1>
      {chosenPictures.length > 0 && <Selection pictures={chosenPictures} clear={() => setChosen(new Set())} />}
      <div class="shelf">
        {jobs.value.map((job) => (
          <JobPictures key={job.job.id} of={job} chosen={chosen} choose={choose} open={(picture) => setOpen(keyOf(picture))} />
        ))}
      </div>
      {isEmpty.value && (
        <div class="empty">
          <h2>{words.empty}</h2>
          <p>{words.emptyLead}</p>
          {may("submit") && <Link href="/draw" class="button main">{texts.nav.draw}</Link>}
        </div>
      )}
      <More list={found} />
      {place >= 0 && <PictureView pictures={pictures} place={place} go={(next) => setOpen(next === null ? null : keyOf(pictures[next]!))} />}
    </section>
  );
}

interface JobPicturesProps {
  of: PictureJob;
  chosen: ReadonlySet<string>;
  choose: (keys: readonly string[], isChosen: boolean) => void;
  open: (picture: Picture) => void;
}

function JobPictures({ of: { job, kind, createdAt }, chosen, choose, open }: JobPicturesProps) {
  const title = words.of(texts.kind[kind], moment(createdAt));
  const pictures = picturesOf(job);
  const keys = pictures.map(keyOf);
  const isAll = keys.every((key) => chosen.has(key));
  return (
    <section class="job-pictures" aria-label={title} style={{ "--pictures": pictures.length }}>
      <div class="head">
        <h2>
          <Link href={`/jobs/${encodeURIComponent(job.id)}`}>{title}</Link>
        </h2>
        {keys.length > 1 && (
          <label class="check">
            <input type="checkbox" checked={isAll} onChange={() => choose(keys, !isAll)} />
            <span>{words.all(keys.length)}</span>
          </label>
        )}
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
