import type { ComponentChildren } from "preact";

export interface Column<Row> {
  name: string;
  cell: (row: Row) => ComponentChildren;
  /** The row's own name, which a screen reader says with every other cell. */
  isHead?: boolean;
  isNumber?: boolean;
  isActions?: boolean;
}

interface TableProps<Row> {
  label: string;
  columns: Column<Row>[];
  rows: Row[];
  keyOf: (row: Row) => string;
  /** What stands in place of a table without rows. */
  empty: string;
  testId?: string;
}

/** A table that becomes a list of cards on a narrow screen. The roles are written out because the cards' `display`
 *  takes them away in some browsers (CSS Display 3, appendix "box generation and accessibility"). */
export function Table<Row>({ label, columns, rows, keyOf, empty, testId }: TableProps<Row>) {
  if (rows.length === 0) return <p class="quiet empty" data-testid={testId === undefined ? undefined : `${testId}-empty`}>{empty}</p>;
  return (
    <table class="table" role="table" aria-label={label} data-testid={testId}>
      <thead role="rowgroup">
        <tr role="row">
          {columns.map((column) => (
            <th key={column.name} role="columnheader" scope="col" class={classOf(column)}>
              {column.isActions === true ? <span class="sr-only">{column.name}</span> : column.name}
            </th>
          ))}
        </tr>
      </thead>
      <tbody role="rowgroup">
        {rows.map((row) => (
          <tr key={keyOf(row)} role="row">
            {columns.map((column) => <Cell key={column.name} column={column} row={row} />)}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function Cell<Row>({ column, row }: { column: Column<Row>; row: Row }) {
  if (column.isHead === true) return <th role="rowheader" scope="row" class="is-head">{column.cell(row)}</th>;
  return <td role="cell" class={classOf(column)} data-label={column.isActions === true ? undefined : column.name}>{column.cell(row)}</td>;
}

function classOf<Row>({ isNumber, isActions }: Column<Row>): string | undefined {
  return isNumber === true ? "is-number" : isActions === true ? "is-actions" : undefined;
}
