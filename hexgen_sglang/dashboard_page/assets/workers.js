// The table of workers: one row each, kept while the worker is there, sorted and filtered.

import { counted, Meter, percent, seconds, setText } from "./parts.js";
import { element } from "./text.js";

const share = (part, whole) => (whole ? part / whole : null);

// Heading, value to sort by, and what the cell shows; `meter`: its share of a whole.
const COLUMNS = [
  { name: "worker", value: (row) => row.worker_id, text: (row) => row.worker_id, isName: true },
  { name: "hardware", value: (row) => row.hardware, text: (row) => row.hardware || "-" },
  { name: "state", value: (row) => row.state, text: stateText, isState: true },
  {
    name: "queue", isNumber: true,
    value: (row) => row.load?.num_waiting ?? -1,
    text: (row) => (row.load === null ? "-" : `${row.load.num_waiting}`),
  },
  {
    name: "running", isNumber: true,
    value: (row) => row.num_in_flight,
    text: (row) => (row.slots === null ? `${row.num_in_flight}` : `${row.num_in_flight} / ${row.slots}`),
    meter: (row) => share(row.num_in_flight, row.slots),
  },
  {
    name: "KV use", isNumber: true,
    value: (row) => kvShare(row) ?? -1, text: (row) => percent(kvShare(row)), meter: kvShare,
  },
  {
    name: "prefix hit", isNumber: true,
    value: (row) => row.prefix_hit_frac ?? -1, text: (row) => percent(row.prefix_hit_frac),
  },
  {
    name: "utilisation", isNumber: true,
    value: (row) => row.busy_frac ?? -1, text: (row) => percent(row.busy_frac),
    meter: (row) => row.busy_frac,
  },
  {
    name: "decode", isNumber: true,
    value: (row) => row.decode_tokens_per_s ?? -1,
    text: (row) => (row.decode_tokens_per_s === null ? "-" : `${Math.round(row.decode_tokens_per_s)} tok/s`),
  },
  {
    name: "reported", isNumber: true,
    value: (row) => row.load?.age_s ?? Infinity,
    text: (row) => (row.load === null ? (row.linked ? "nothing" : "no link") : `${seconds(row.load.age_s)} ago`),
  },
];

function kvShare(row) {
  return row.load === null ? null : share(row.load.num_kv_tokens_used, row.kv_capacity_tokens);
}

function stateText(row) {
  return row.state === "unreachable" && row.last_error ? `unreachable: ${row.last_error}` : row.state;
}

/** The table; `heads`, `body`: where its headings and rows go; `note`: how many of what. */
export class Workers {
  constructor(heads, body, note, filter) {
    this.body = body;
    this.note = note;
    this.filter = filter;
    this.lines = new Map();
    this.rows = [];
    this.sorted = { column: COLUMNS[0], isDown: false };
    this.heads = COLUMNS.map((column) => this.head(column));
    heads.replaceChildren(...this.heads);
    this.markSorted();
    filter.addEventListener("input", () => this.arrange());
  }

  head(column) {
    const head = element("th", "", column.isNumber ? "number" : "");
    head.scope = "col";
    const button = element("button", column.name);
    button.type = "button";
    button.addEventListener("click", () => {
      const isSame = this.sorted.column === column;
      this.sorted = { column, isDown: isSame ? !this.sorted.isDown : Boolean(column.isNumber) };
      this.markSorted();
      this.arrange();
    });
    head.append(button);
    return head;
  }

  markSorted() {
    COLUMNS.forEach((column, index) => {
      const order = this.sorted.isDown ? "descending" : "ascending";
      this.heads[index].setAttribute("aria-sort", column === this.sorted.column ? order : "none");
    });
  }

  /** Bring every row up to date. */
  show(rows) {
    this.rows = rows;
    const known = new Set(rows.map((row) => row.worker_id));
    for (const [name, line] of this.lines) {
      if (known.has(name)) continue;
      line.place.remove();
      this.lines.delete(name);
    }
    for (const row of rows) {
      if (!this.lines.has(row.worker_id)) this.lines.set(row.worker_id, newLine());
      fill(this.lines.get(row.worker_id), row);
    }
    const states = {};
    for (const row of rows) states[row.state] = (states[row.state] ?? 0) + 1;
    const parts = Object.entries(states).map(([state, number]) => `${number} ${state}`);
    setText(this.note, `${counted(rows.length, "worker")}${parts.length ? ": " : ""}${parts.join(", ")}`);
    this.arrange();
  }

  /** Put the rows in order, and hide those that the filter leaves out. */
  arrange() {
    const { column, isDown } = this.sorted;
    const compare = (a, b) => {
      const [left, right] = [column.value(a), column.value(b)];
      if (typeof left === "string") return left.localeCompare(right, "en", { numeric: true });
      return left - right;
    };
    const ordered = [...this.rows].sort((a, b) => (isDown ? compare(b, a) : compare(a, b)));
    const wanted = this.filter.value.trim().toLowerCase();
    ordered.forEach((row, index) => {
      const { place } = this.lines.get(row.worker_id);
      place.hidden = !`${row.worker_id} ${row.hardware} ${row.state}`.toLowerCase().includes(wanted);
      if (this.body.children[index] !== place) this.body.insertBefore(place, this.body.children[index]);
    });
  }
}

function newLine() {
  const place = element("tr");
  const cells = COLUMNS.map((column) => {
    if (column.meter) return new Meter();
    const made = element(column.isName ? "th" : "td", "", column.isNumber ? "number" : "name");
    if (column.isName) made.scope = "row";
    return made;
  });
  place.append(...cells.map((one) => one.cell ?? one));
  return { place, cells };
}

function fill(line, row) {
  COLUMNS.forEach((column, index) => {
    const place = line.cells[index];
    const text = column.text(row);
    if (column.meter) {
      place.show(column.meter(row), text);
      return;
    }
    setText(place, text);
    if (column.isState) place.className = `name state ${row.state}`;
    if (column.isName || column.isState) place.title = text;
  });
}
