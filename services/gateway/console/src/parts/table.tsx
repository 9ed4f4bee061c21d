/** A table: of few numbers, or one that becomes a list of its rows where its columns have no room. */
import type { ComponentChildren } from "preact";

interface TableProps<T> {
  /** What it is, for those who do not see it. */
  label: string;
  columns: readonly string[];
  rows: readonly T[];
  kind: "numeric" | "list";
  keyOf: (row: T) => string;
  /** One for each column. */
  cells: (row: T) => readonly ComponentChildren[];
}

/** With roles, which the browser forgets when a table is laid out as a list. */
export function Table<T>({ label, columns, rows, kind, keyOf, cells }: TableProps<T>) {
  return (
    <table class={`table ${kind}`} role="table" aria-label={label}>
      <thead role="rowgroup">
        <tr role="row">
          {columns.map((name) => <th key={name} role="columnheader" scope="col">{name}</th>)}
        </tr>
      </thead>
      <tbody role="rowgroup">
        {rows.map((row) => (
          <tr key={keyOf(row)} role="row">
            {cells(row).map((cell, place) => (
              <td key={columns[place]} role="cell" data-label={columns[place]}>{cell}</td>
            ))}
          </tr>
        ))}
      </tbody>
    </table>
  );
}
