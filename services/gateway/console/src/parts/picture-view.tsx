/** One of many images in full, with its settings, walked by the arrow keys. */
import { Link } from "wouter-preact";
import { count } from "../format";
import { steady } from "../state/links";
import { may } from "../state/session";
import { type Picture, modelOf, nameOfModel } from "../state/pictures";
import { texts } from "../texts";
import { FullView } from "./full-view";

const words = texts.picture;

interface PictureViewProps {
  pictures: readonly Picture[];
  place: number;
  go: (place: number | null) => void;
  /** Draw with the picture's settings. */
  use: (picture: Picture) => void;
}

const MOVES: Record<string, number> = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };

export function PictureView({ pictures, place, go, use }: PictureViewProps) {
  const shown = pictures[place];
  if (!shown) return null;
  const { image, of } = shown;
  const walk = (key: string) => {
    const next = place + (MOVES[key] ?? 0);
    if (next in pictures) go(next);
  };
  const actions = (
    <>
      {may("submit") && <button onClick={() => use(shown)}>{words.use}</button>}
      <a class="button" href={image.image!} download>{texts.job.download}</a>
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
      <dl class="facts">
        <Fact name={texts.draw.fields.seed} value={String(image.seed)} />
        <Fact name={words.size} value={`${image.width} × ${image.height}`} />
        <Fact name={texts.draw.fields.num_inference_steps} value={count(image.num_inference_steps)} />
        <Fact name={texts.draw.fields.guidance_scale} value={count(image.guidance_scale)} />
        <Fact name={texts.draw.fields.scheduler} value={image.scheduler} />
      </dl>
      <dl>
        <dt>{texts.draw.model}</dt>
        <dd>{nameOfModel(modelOf(of.job))}</dd>
        <dt>{words.job}</dt>
        <dd><Link href={`/jobs/${encodeURIComponent(of.id)}`}>{of.id}</Link></dd>
      </dl>
      <p class="hint">{words.keys}</p>
    </FullView>
  );
}

function Fact({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}
