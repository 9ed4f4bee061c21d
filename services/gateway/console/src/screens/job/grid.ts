import type { Sample } from "../../api/types";

/** Samples as a table. */
export interface Grid {
  /** The columns. */
  prompts: string[];
  /** The rows, newest first. */
  steps: number[];
  /** By row and column; undefined: not drawn, or not yet. */
  cells: (Sample | undefined)[][];
}

/** Columns in the order in which the prompts were asked for, rows from the newest step to the first. */
export function gridOf(samples: readonly Sample[]): Grid {
  const prompts = [...new Set(samples.map((sample) => sample.prompt))];
  const steps = [...new Set(samples.map((sample) => sample.step))].sort((a, b) => b - a);
  const found = new Map(samples.map((sample) => [`${sample.step} ${sample.prompt}`, sample]));
  const cells = steps.map((step) => prompts.map((prompt) => found.get(`${step} ${prompt}`)));
  return { prompts, steps, cells };
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
    if (!(row in grid.cells) || !(column in grid.prompts)) return place;
    if (grid.cells[row]![column]) return { row, column };
  }
}
