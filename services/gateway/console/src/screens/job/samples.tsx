import { useMemo, useState } from "preact/hooks";
import { type Sample, smallOf } from "../../api/types";
import { count } from "../../format";
import { Thumbnail } from "../../parts/thumbnail";
import { texts } from "../../texts";
import { type Grid, type Place, columnOf, gridOf } from "./grid";
import { Viewer } from "./viewer";

const words = texts.job;

export function Samples({ samples }: { samples: readonly Sample[] }) {
  const [open, setOpen] = useState<Place | null>(null);
  // Each answer lists all of them again: hundreds are drawn anew only when there is another one.
  const known = samples.map((each) => `${each.step} ${each.seed} ${each.prompt}`).join("\n");
  const grid = useMemo(() => gridOf(samples), [known]);
  const table = useMemo(() => <Table grid={grid} open={setOpen} />, [grid]);
  return (
    <section class="card samples" style={{ "--columns": grid.columns.length }}>
      <h2>{words.samples}</h2>
      <p class="hint">{grid.steps.length ? words.samplesLead : words.noSamples}</p>
      {grid.steps.length > 0 && table}
      {open && <Viewer grid={grid} place={open} go={setOpen} />}
    </section>
  );
}

function Table({ grid, open }: { grid: Grid; open: (place: Place) => void }) {
  return (
    <div class="grid-scroll">
      <table class="sample-grid">
        <thead>
          <tr>
            <td />
            {grid.columns.map((each) => (
              <th key={columnOf(each)} scope="col"><span class="clamp" title={each.prompt} dir="auto">{each.prompt}</span></th>
            ))}
          </tr>
        </thead>
        <tbody>
          {grid.cells.map((cells, row) => (
            <tr key={grid.steps[row]}>
              <th scope="row">{stepName(grid.steps[row]!)}</th>
              {cells.map((sample, column) => (
                <td key={column}>
                  {sample && (
                    <button class="picture" onClick={() => open({ row, column })} aria-label={words.open(sample.prompt, count(sample.step))}>
                      <Thumbnail link={smallOf(sample)} width={256} height={256} />
                    </button>
                  )}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

export const stepName = (step: number): string => (step === 0 ? words.before : words.stepRow(count(step)));
