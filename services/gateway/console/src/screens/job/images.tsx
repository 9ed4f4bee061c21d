import { useState } from "preact/hooks";
import { type JobStatus, smallOf } from "../../api/types";
import { count } from "../../format";
import { PictureView } from "../../parts/picture-view";
import { Thumbnail } from "../../parts/thumbnail";
import { imagesOf, picturesOf } from "../../state/pictures";
import { texts } from "../../texts";

export function Images({ job }: { job: JobStatus }) {
  const [open, setOpen] = useState<number | null>(null);
  const [images, pictures] = [imagesOf(job), picturesOf(job)];
  if (!images.length) return null;
  return (
    <section class="card">
      <h2>{texts.job.results}</h2>
      <ul class="images">
        {images.map((image, index) => (
          <li key={index}>
            {image.image ? (
              <button
                class="picture" aria-label={texts.gallery.open(image.prompt, count(index + 1))}
                onClick={() => setOpen(pictures.findIndex((each) => each.index === index))}
              >
                <Thumbnail link={smallOf(image)!} width={image.width} height={image.height} />
              </button>
            ) : (
              <p class="problem-text">{image.error}</p>
            )}
            <p class="clamp" dir="auto" title={image.prompt}>{image.prompt}</p>
            <p class="hint">
              {image.width} × {image.height} · {image.scheduler} · {texts.viewer.seed} {image.seed}
            </p>
          </li>
        ))}
      </ul>
      {open !== null && <PictureView pictures={pictures} place={open} go={setOpen} />}
    </section>
  );
}
