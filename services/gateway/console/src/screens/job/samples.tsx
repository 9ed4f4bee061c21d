import { useState } from "preact/hooks";
import { type Sample, smallOf } from "../../api/types";
import { count } from "../../format";
import { texts } from "../../texts";
import { type Place, gridOf } from "./grid";
import { Viewer } from "./viewer";

const words = texts.job;

export function Samples({ samples }: { samples: readonly Sample[] }) {
  const [open, setOpen] = useState<Place | null>(null);
  const grid = gridOf(samples);
  return (
    <section class="card">
      <h2>{words.samples}</h2>
      <p class="hint">{grid.steps.length ? words.samplesLead : words.noSamples}</p>
      {grid.steps.length > 0 && (
        <div class="grid-scroll">
          <table class="sample-grid">
            <thead>
              <tr>
                <td />
                {grid.prompts.map((prompt) => (
                  <th key={prompt} scope="col"><span class="clamp" title={prompt}>{prompt}</span></th>
                ))}
              </tr>
            </thead>
            <tbody>
              {grid.cells.map((cells, row) => (
                <tr key={grid.steps[row]}>
                  <th scope="row">{stepName(grid.steps[row]!)}</th>
                  {cells.map((sample, column) => (
                    <td key={grid.prompts[column]}>
                      {sample && (
                        <button
                          class="picture" onClick={() => setOpen({ row, column })}
                          aria-label={words.open(sample.prompt, count(sample.step))}
                        >
                          <img src={smallOf(sample)} alt="" loading="lazy" decoding="async" />
                        </button>
                      )}
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      {open && <Viewer grid={grid} place={open} go={setOpen} />}
    </section>
  );
}

export const stepName = (step: number): string => (step === 0 ? words.before : words.stepRow(count(step)));
