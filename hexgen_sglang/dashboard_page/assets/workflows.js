// Workflows on one time axis: when which stage ran, and where the deadline is.

import { bar, cell, seconds, showLegend, tick } from "./parts.js";
import { element, visible } from "./text.js";

const LEAST_S = 10;
const NUM_COLOURS = 8;

/** Gives each stage a colour, in the order in which stages are first seen. */
export class Stages {
  constructor() {
    this.colours = new Map();
  }

  /** The class of a stage's colour. */
  of(stage) {
    if (!this.colours.has(stage)) this.colours.set(stage, this.colours.size % NUM_COLOURS);
    return `stage-${this.colours.get(stage)}`;
  }

  /** Show which is which, for as many as have a colour of their own. */
  showLegend(place) {
    const entries = [...this.colours.keys()].slice(0, NUM_COLOURS);
    showLegend(place, entries.map((stage) => [this.of(stage), stage || "(no stage)"]));
  }
}

/** The rows; `open(id)` is called to explain one. */
export class Workflows {
  constructor(body, axis, choice, stages, open) {
    this.body = body;
    this.axis = axis;
    this.choice = choice;
    this.stages = stages;
    this.open = open;
    this.lines = new Map();
    this.rows = [];
    choice.addEventListener("change", () => this.draw());
  }

  /** Bring every row up to date. */
  show(rows) {
    this.rows = rows;
    this.draw();
  }

  draw() {
    const needed = Math.max(LEAST_S, ...this.rows.map((row) => row.age_s));
    const span = Number(this.choice.value) || needed;
    const words = element("div", "", "axis");
    words.append(element("span", `${seconds(span)} ago`), element("span", "now"));
    this.axis.replaceChildren(words);
    const known = new Set(this.rows.map((row) => row.workflow_id));
    for (const [name, line] of this.lines) {
      if (known.has(name)) continue;
      line.place.remove();
      this.lines.delete(name);
    }
    this.rows.forEach((row, index) => {
      if (!this.lines.has(row.workflow_id)) this.lines.set(row.workflow_id, this.newLine(row));
      const line = this.lines.get(row.workflow_id);
      this.fill(line, row, span);
      const here = this.body.children[index];
      if (here !== line.place) this.body.insertBefore(line.place, here ?? null);
    });
    if (this.rows.length === 0) {
      const empty = cell("no workflows yet", "hint");
      empty.colSpan = 6;
      const line = element("tr");
      line.append(empty);
      this.body.replaceChildren(line);
      this.lines.clear();
    } else {
      while (this.body.children.length > this.rows.length) this.body.lastChild.remove();
    }
  }

  newLine(row) {
    const place = element("tr");
    const head = element("th", "", "name");
    head.scope = "row";
    const link = element("a", row.workflow_id);
    link.href = `/dashboard/workflows/${encodeURIComponent(row.workflow_id)}`;
    link.title = visible(row.workflow_id);
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.open(row.workflow_id);
    });
    head.append(link);
    const track = element("div", "", "track");
    const holder = cell("");
    holder.append(track);
    const rest = [cell("", "number"), cell("", "number"), cell("", "state")];
    place.append(head, cell(row.workflow_type ?? "-", "name"), holder, ...rest);
    return { place, track, rest };
  }

  fill(line, row, span) {
    const at = (instant) => Math.max(0, Math.min(1, 1 - (row.age_s - instant) / span));
    const bars = row.passes
      .filter(([, , end]) => row.age_s - end <= span)
      .map(([stage, start, end, number, numOpen]) => {
        const made = bar(at(start), at(end) - at(start), this.stages.of(stage));
        made.classList.toggle("open", numOpen > 0);
        made.title = visible(`${stage || "(no stage)"}: ${seconds(end - start)}, ${number} requests`);
        return made;
      });
    if (row.budget_s !== null && row.budget_s <= row.age_s && row.age_s - row.budget_s <= span) {
      bars.push(tick(at(row.budget_s), row.met_deadline === false ? "missed" : ""));
    }
    line.track.replaceChildren(...bars);
    const [took, budget, state] = line.rest;
    took.textContent = seconds(row.elapsed_s);
    budget.textContent = seconds(row.budget_s);
    const [text, kind] = verdict(row);
    state.textContent = text;
    state.className = `state ${kind}`;
  }
}

/** What there is to say about its deadline, and in which colour. */
export function verdict(row) {
  if (row.cancelled) return ["cancelled", ""];
  if (row.budget_s === null) return row.ended ? ["none", ""] : ["none, running", "open"];
  const left = row.budget_s - row.elapsed_s;
  if (row.met_deadline === false) return [`late by ${seconds(-left)}`, "missed"];
  return row.ended ? [`met, ${seconds(left)} left`, "met"] : [`${seconds(left)} left`, "open"];
}
