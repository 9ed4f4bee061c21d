/** One of many images in full, with its settings, walked by the arrow keys. */
import { Link, useLocation } from "wouter-preact";
import { count } from "../format";
import { steady } from "../state/links";
import { may } from "../state/session";
import { type Picture, drawAgain, modelOf, nameOfModel } from "../state/pictures";
import { texts } from "../texts";
import { Facts } from "./facts";
import { FullView } from "./full-view";

const words = texts.picture;

interface PictureViewProps {
  pictures: readonly Picture[];
  place: number;
  go: (place: number | null) => void;
  /** Draw with the picture's settings; without it that is another screen. */
  use?: (picture: Picture) => void;
}

const MOVES: Record<string, number> = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };

export function PictureView({ pictures, place, go, use }: PictureViewProps) {
  const [, open] = useLocation();
  const shown = pictures[place];
  if (!shown) return null;
  const { image, job } = shown;
  const walk = (key: string) => {
    const next = place + (MOVES[key] ?? 0);
    if (next in pictures) go(next);
  };
  const actions = (
    <>
      <a class="button" href={image.image!} download>{texts.job.download}</a>
      {may("submit") && <button onClick={() => (use ? use(shown) : open(drawAgain(shown)))}>{words.use}</button>}
    </>
  );
  return (
    <FullView
      label={words.title} walk={walk} onClose={() => go(null)} actions={actions}
      picture={<img src={steady(image.image!)} alt={image.prompt} />}
    >
      <p class="hint" aria-live="polite">{words.place(count(place + 1), count(pictures.length))}</p>
      <dl>
        <dt>{texts.draw.fields.prompt}</dt>
        <dd dir="auto">{image.prompt || texts.draw.noPrompt}</dd>
        {image.negative_prompt && <dt>{texts.draw.fields.negative_prompt}</dt>}
        {image.negative_prompt && <dd dir="auto">{image.negative_prompt}</dd>}
      </dl>
      <Facts
        facts={[
          [texts.draw.fields.seed, image.seed],
          [words.size, `${image.width} × ${image.height}`],
          [texts.draw.fields.num_inference_steps, count(image.num_inference_steps)],
          [texts.draw.fields.guidance_scale, count(image.guidance_scale)],
          [texts.draw.fields.scheduler, image.scheduler],
        ]}
      />
      <dl>
        <dt>{texts.draw.model}</dt>
        <dd>{nameOfModel(modelOf(job))}</dd>
        <dt>{words.job}</dt>
        <dd><Link href={`/jobs/${encodeURIComponent(job.id)}`}>{job.id}</Link></dd>
      </dl>
      <p class="hint">{words.keys}</p>
    </FullView>
  );
}
