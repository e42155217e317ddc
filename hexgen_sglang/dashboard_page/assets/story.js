// One workflow's story: budget against actual, each decision, and why it was late.

import { bar, cell, seconds, tick } from "./parts.js";
import { element } from "./text.js";

const at = (id) => document.getElementById(id);
const nameOf = (stage) => stage || "(no stage)";

/** Show what `GET /workflows/ID/explain` told. */
export function showStory(story, stages) {
  at("story-title").textContent = element("span", `Workflow ${story.workflow_id}`).textContent;
  at("verdict").textContent = element("span", verdictOf(story)).textContent;
  const late = story.late;
  at("late-section").hidden = late === null;
  if (late !== null) {
    at("causes").replaceChildren(...late.causes.map((cause) => element("li", causeOf(cause))));
    at("gaps").textContent = `Between the stages (the client's own work): ${seconds(late.gaps_s)}.`;
  }
  const whole = Math.max(0.001, story.elapsed_s, ...story.passes.map((row) => row.start_s + (row.budget_s ?? 0)));
  at("pass-rows").replaceChildren(...story.passes.map((row) => passLine(row, whole, stages)));
  at("decision-rows").replaceChildren(...story.decisions.map(decisionLine));
  const number = story.num_decisions_forgotten;
  at("forgotten").textContent = number === 0 ? "" : `${number} older ones were forgotten.`;
}

function verdictOf(story) {
  const kind = story.workflow_type ? ` (${story.workflow_type})` : "";
  const took = `${story.workflow_id}${kind} ${story.ended ? "took" : "has taken"} ${seconds(story.elapsed_s)}`;
  if (story.cancelled) return `${took} and was cancelled.`;
  if (story.budget_s === null) return `${took}; it had no deadline.`;
  const of = `${took} of ${seconds(story.budget_s)}`;
  if (story.late !== null) return `${of}: late by ${seconds(story.late.by_s)}.`;
  return story.ended ? `${of}: in time.` : `${of}: not late so far.`;
}

function causeOf(cause) {
  const name = `${nameOf(cause.stage)}, visit ${cause.visit}`;
  const said =
    cause.overrun_s === null
      ? `took ${seconds(cause.elapsed_s)}; nothing was known of it to give it a budget`
      : `${seconds(cause.overrun_s)} over its budget of ${seconds(cause.budget_s)} (${seconds(cause.elapsed_s)})`;
  const spent = ["queueing", "prefill", "decode"].map((word) => `${word} ${seconds(cause[`${word}_s`])}`);
  return `${name}: ${said}. Its last request: ${spent.join(", ")}.`;
}

function passLine(row, whole, stages) {
  const line = element("tr");
  const head = element("th", nameOf(row.stage), "name");
  head.scope = "row";
  const track = element("div", "", "track");
  track.append(bar(row.start_s / whole, row.elapsed_s / whole, stages.of(row.stage)));
  if (row.budget_s !== null) {
    const isOver = row.overrun_s > 0;
    track.append(tick(Math.min(0.995, (row.start_s + row.budget_s) / whole), isOver ? "missed" : ""));
  }
  const holder = cell("");
  holder.append(track);
  const slowest = row.slowest ?? {};
  const spent = ["coordinator_queue_s", "engine_queue_s", "prefill_s", "decode_s"];
  line.append(
    head,
    cell(row.visit, "number"),
    cell(row.num_requests, "number"),
    holder,
    cell(seconds(row.elapsed_s), "number"),
    cell(seconds(row.budget_s), "number"),
    cell(seconds(row.overrun_s), "number"),
    cell(slowest.worker_id ?? "-", "name"),
    ...spent.map((name) => cell(seconds(slowest[name]), "number")),
  );
  return line;
}

function decisionLine(row) {
  const line = element("tr");
  const waited = seconds(row.last_s - row.first_s);
  const said =
    row.picked === null
      ? `waits for ${row.waits_for ?? "room"} (${row.num_times} x in ${waited})`
      : `to ${row.picked}`;
  line.append(
    cell(seconds(row.first_s), "number"),
    cell(`${nameOf(row.stage)}[${row.sibling_index}]`, "name"),
    cell(said),
    cell(scoreOf(row.winner), "wide"),
    cell(row.runner_up?.worker_id ?? "-", "name"),
    cell(scoreOf(row.runner_up), "wide"),
    cell(behind(row), "number"),
    cell(seconds(row.inputs.slack_s), "number"),
    cell(row.inputs.num_candidates, "number"),
  );
  return line;
}

function scoreOf(price) {
  if (price === null) return "-";
  const terms = Object.entries(price.terms).map(([name, value]) => `${name} ${short(value)}`);
  const room = price.has_room ? "" : ", full";
  return [...terms, `${price.num_in_flight} in flight`, `${price.cached_tokens} cached${room}`].join(", ");
}

// By the first of the policy's numbers, which is what it compares.
function behind({ winner, runner_up: other }) {
  if (winner === null || other === null) return "-";
  const [name] = Object.keys(winner.terms);
  return name === undefined ? "-" : short(Math.abs(other.terms[name] - winner.terms[name]));
}

function short(value) {
  return Number.isFinite(value) ? `${Number(value.toPrecision(4))}` : String(value);
}
