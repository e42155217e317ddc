// A result's rows as a grid: one cell is in the focus order, arrows go from cell to cell.

import { element } from "./text.js";

const MOVES = {
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
  PageUp: [-20, 0],
  PageDown: [20, 0],
};

/** Fill the table; `rows` hold numbers, strings and null. */
export function showRows(table, columns, rows) {
  const isNumber = columns.map((_, at) => rows.some((row) => typeof row[at] === "number"));
  const head = element("tr");
  columns.forEach((name, at) => head.append(header(name, isNumber[at])));
  const body = element("tbody");
  for (const row of rows) {
    const line = element("tr");
    line.append(...row.map((cell) => valueCell(cell)));
    body.append(line);
  }
  const top = element("thead");
  top.append(head);
  table.replaceChildren(top, body);
  const first = table.querySelector("tbody td") ?? table.querySelector("th");
  if (first !== null) first.tabIndex = 0;
}

/** Let the table's cells be reached with arrows, Home and End; once for each table. */
export function listenToArrows(table) {
  table.addEventListener("keydown", (event) => {
    const cell = event.target.closest("th, td");
    if (cell === null || event.altKey || event.metaKey) return;
    const target = reached(table, cell, event);
    if (target === undefined) return;
    event.preventDefault();
    focusCell(table, target);
  });
  table.addEventListener("click", (event) => {
    const cell = event.target.closest("th, td");
    if (cell !== null) focusCell(table, cell);
  });
}

function reached(table, cell, event) {
  const line = cell.parentElement;
  if (event.key === "Home" || event.key === "End") {
    const lines = event.ctrlKey ? table.rows : [line];
    const row = event.key === "Home" ? lines[0] : lines[lines.length - 1];
    return event.key === "Home" ? row.firstElementChild : row.lastElementChild;
  }
  const move = MOVES[event.key];
  if (move === undefined || event.ctrlKey) return undefined;
  const row = clamped(line.rowIndex + move[0], table.rows.length);
  const column = clamped(cell.cellIndex + move[1], line.cells.length);
  return table.rows[row].cells[column];
}

function clamped(at, length) {
  return Math.min(Math.max(at, 0), length - 1);
}

function focusCell(table, cell) {
  for (const old of table.querySelectorAll("[tabindex='0']")) old.tabIndex = -1;
  cell.tabIndex = 0;
  cell.focus();
}

function header(name, isNumber) {
  const cell = element("th", name, isNumber ? "number" : "");
  cell.scope = "col";
  cell.tabIndex = -1;
  return cell;
}

function valueCell(value) {
  const kind = value === null ? "null" : typeof value === "number" ? "number" : "";
  const cell = element("td", value === null ? "NULL" : value, kind);
  cell.setAttribute("role", "gridcell");
  cell.tabIndex = -1;
  return cell;
}
