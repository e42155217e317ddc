// The stages of one question, drawn while they run.

import { element } from "./text.js";

const TICK_MS = 100;

/** Rows of stages, as wide as the time taken so far; `clock` counts it. */
export class Timeline {
  constructor(body, clock) {
    this.body = body;
    this.clock = clock;
    this.clear();
  }

  /** Forget the last question. */
  clear() {
    clearInterval(this.timer);
    this.rows = [];
    this.body.replaceChildren();
    this.clock.textContent = "";
    this.deadline = 0;
    this.shift = null;
  }

  /** A new question with that many seconds. */
  start(deadline) {
    this.clear();
    this.deadline = deadline;
    this.timer = setInterval(() => this.draw(), TICK_MS);
  }

  /** The server's clock stands at `at` seconds now. */
  sync(at) {
    this.shift = performance.now() / 1000 - at;
  }

  /** A stage's requests are sent. */
  stageStarted({ stage, num_requests, at_s }) {
    const line = element("tr");
    const bar = element("div", "", "bar");
    const track = element("div", "", "track");
    const cell = element("td");
    track.append(bar);
    cell.append(track);
    line.append(element("th", stage), element("td", num_requests || "-", "number"), cell);
    line.firstChild.scope = "row";
    this.body.append(line);
    this.rows.push({ stage, line, bar, start: at_s, end: null });
    this.draw();
  }

  /** A stage has its answers. */
  stageFinished(event) {
    const row = this.rows.find((one) => one.stage === event.stage && one.end === null);
    if (row === undefined) return;
    row.end = event.at_s;
    row.bar.classList.add(event.num_failed > 0 ? "failed" : "done");
    const notes = [];
    if (event.num_failed > 0) notes.push(`${event.num_failed} failed`);
    if (event.num_late > 0) notes.push(`${event.num_late} not awaited`);
    const counts = [event.prompt_tokens, event.cached_tokens, event.output_tokens];
    row.line.append(
      element("td", event.elapsed_s.toFixed(2), "number"),
      ...counts.map((count) => element("td", event.num_requests ? count : "", "number")),
      element("td", [...event.workers, ...notes].join(", ")),
    );
    this.draw();
  }

  /** Nothing runs any more; stages that were stopped keep the length they have. */
  stop() {
    clearInterval(this.timer);
    const now = this.now();
    for (const row of this.rows) {
      if (row.end === null) {
        row.end = now;
        row.bar.classList.add("failed");
      }
    }
    this.draw();
    this.clock.textContent = "";
  }

  now() {
    return this.shift === null ? 0 : performance.now() / 1000 - this.shift;
  }

  draw() {
    const now = this.now();
    const ends = this.rows.map((row) => row.end ?? now);
    const whole = Math.max(0.001, ...ends);
    this.clock.textContent = `${now.toFixed(1)} s of ${this.deadline} s`;
    this.rows.forEach((row, index) => {
      row.bar.style.left = `${(100 * row.start) / whole}%`;
      row.bar.style.width = `${(100 * Math.max(0, ends[index] - row.start)) / whole}%`;
    });
  }
}
