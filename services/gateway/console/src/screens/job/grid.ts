import type { Sample } from "../../api/types";

/** Samples as a table. */
export interface Grid {
  /** The first sample of each column: its prompt and seed are those of all. */
  columns: Sample[];
  /** The rows, newest first. */
  steps: number[];
  /** By row and column; undefined: not drawn, or not yet. */
  cells: (Sample | undefined)[][];
}

/** A prompt that was asked for twice has two columns, each with a seed of its own. */
export const columnOf = ({ seed, prompt }: Sample): string => `${seed} ${prompt}`;

/** Columns in the order in which the prompts were asked for, rows from the newest step to the first. */
export function gridOf(samples: readonly Sample[]): Grid {
  const first = new Map<string, Sample>();
  for (const sample of samples) if (!first.has(columnOf(sample))) first.set(columnOf(sample), sample);
  const columns = [...first.values()];
  const steps = [...new Set(samples.map((sample) => sample.step))].sort((a, b) => b - a);
  const found = new Map(samples.map((sample) => [`${sample.step} ${columnOf(sample)}`, sample]));
  const cells = steps.map((step) => columns.map((column) => found.get(`${step} ${columnOf(column)}`)));
  return { columns, steps, cells };
}

export interface Place {
  row: number;
  column: number;
}

const MOVES: Record<string, Place> = {
  ArrowUp: { row: -1, column: 0 },
  ArrowDown: { row: 1, column: 0 },
  ArrowLeft: { row: 0, column: -1 },
  ArrowRight: { row: 0, column: 1 },
};

/** Where an arrow key leads: to the next cell that has a sample; the same place if there is none. */
export function moved(grid: Grid, place: Place, key: string): Place {
  const move = MOVES[key];
  if (!move) return place;
  for (let { row, column } = place; ; ) {
    row += move.row;
    column += move.column;
    if (!(row in grid.cells) || !(column in grid.columns)) return place;
    if (grid.cells[row]![column]) return { row, column };
  }
}
