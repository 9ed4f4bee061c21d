import { useState } from "preact/hooks";
import { FullView } from "../../parts/full-view";
import { steady } from "../../state/links";
import { texts } from "../../texts";
import { type Grid, type Place, moved } from "./grid";
import { stepName } from "./samples";

const words = texts.viewer;

interface ViewerProps {
  grid: Grid;
  place: Place;
  go: (place: Place | null) => void;
}

/** A sample in full, walked by the arrow keys, compared with another step of its prompt. */
export function Viewer({ grid, place, go }: ViewerProps) {
  const [compared, setCompared] = useState<number | null>(null);
  const [share, setShare] = useState(50);

  const sample = grid.cells[place.row]?.[place.column];
  if (!sample) return null;
  const row = compared === null ? -1 : grid.steps.indexOf(compared);
  const other = grid.cells[row]?.[place.column];
  const picture = (
    <>
      <img src={steady(sample.image)} alt={`${sample.prompt}, ${stepName(sample.step)}`} />
      {other && (
        <>
          <img
            class="over" src={steady(other.image)} alt={`${other.prompt}, ${stepName(other.step)}`}
            style={{ clipPath: `inset(0 0 0 ${share}%)` }}
          />
          <div class="divider" style={{ left: `${share}%` }} aria-hidden="true">
            <span>{stepName(sample.step)}</span>
            <span>{stepName(other.step)}</span>
          </div>
        </>
      )}
    </>
  );

  return (
    <FullView
      label={words.title} picture={picture} onClose={() => go(null)} walk={(key) => go(moved(grid, place, key))}
      actions={<a class="button" href={sample.image} download>{texts.job.download}</a>}
    >
      <dl>
        <dt>{words.step}</dt>
        <dd aria-live="polite">{stepName(sample.step)}</dd>
        <dt>{words.prompt}</dt>
        <dd dir="auto">{sample.prompt}</dd>
        <dt>{words.seed}</dt>
        <dd>{sample.seed}</dd>
      </dl>
      <label>
        <span>{words.compare}</span>
        <select value={compared ?? ""} onChange={(event) => setCompared(chosenStep(event.currentTarget.value))}>
          <option value="">–</option>
          {grid.steps.map((step, index) =>
            grid.cells[index]?.[place.column] && step !== sample.step ? (
              <option key={step} value={step}>{stepName(step)}</option>
            ) : null,
          )}
        </select>
      </label>
      {other && (
        <input
          type="range" min="0" max="100" value={share} aria-label={words.compareSlider}
          onInput={(event) => setShare(event.currentTarget.valueAsNumber)}
        />
      )}
      <p class="hint">{words.keys}</p>
    </FullView>
  );
}

const chosenStep = (text: string): number | null => (text === "" ? null : Number(text));
