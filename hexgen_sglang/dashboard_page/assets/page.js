// The page: asks once a second, shows all workers and workflows, or the story of one workflow.

import { lines, scatter, stackedBars } from "./drawing.js";
import { cell, percent, seconds, setText, showLegend } from "./parts.js";
import { showStory } from "./story.js";
import { getJson, Refusal } from "./stream.js";
import { element, visible } from "./text.js";
import { Workers } from "./workers.js";
import { Stages, Workflows } from "./workflows.js";

const at = (id) => document.getElementById(id);
const ONE = "/dashboard/workflows/";
const EVERY_MS = 1000;
const MOST_MS = 15000;
const OUTCOMES = ["met", "missed", "best", "cancelled"];

const stages = new Stages();
const workers = new Workers(at("worker-heads"), at("worker-rows"), at("workers-note"), at("filter"));
const workflows = new Workflows(at("workflow-rows"), at("axis"), at("window"), stages, (id) => {
  history.pushState(null, "", ONE + encodeURIComponent(id));
  arrive();
});
let key = "";
let timer = 0;
let numFailures = 0;
let isPaused = false;
let isOver = false; // the story that is shown cannot change any more
let turn = 0; // counts views, so that an answer that comes late is not shown in another one

function workflowShown() {
  return location.pathname.startsWith(ONE) ? decodeURIComponent(location.pathname.slice(ONE.length)) : null;
}

/** Show what the address says. */
function arrive() {
  turn += 1;
  isOver = false;
  const id = workflowShown();
  at("overview").hidden = true;
  at("story").hidden = true;
  showError("");
  at("workflow").value = id ?? "";
  document.title = `${id === null ? "Dashboard" : visible(id)} - hexgen-sglang`;
  load(true);
}

async function load(isNew = false) {
  clearTimeout(timer);
  const mine = turn;
  try {
    const id = workflowShown();
    const path = id === null ? "/dashboard/state" : `/workflows/${encodeURIComponent(id)}/explain`;
    const told = await getJson(path, key);
    if (mine !== turn) return;
    numFailures = 0;
    showError("");
    at("key-row").hidden = key === "";
    if (id === null) showState(told);
    else showStory(told, stages);
    isOver = id !== null && told.ended;
    at(id === null ? "overview" : "story").hidden = false;
    if (isNew && id !== null) at("story-title").focus();
    if (isNew) say("");
  } catch (error) {
    if (mine !== turn) return;
    if (fail(error)) return;
  }
  plan();
}

/** Ask again later, more rarely while it fails. */
function plan() {
  clearTimeout(timer);
  if (isPaused || isOver || document.hidden) return;
  timer = setTimeout(load, Math.min(MOST_MS, EVERY_MS * 2 ** numFailures));
}

/** Tell what went wrong; true when asking again is of no use. */
function fail(error) {
  const wantsKey = error instanceof Refusal && error.status === 401;
  if (wantsKey) {
    at("key-row").hidden = false;
    at("key").focus();
    say("An API key is needed.");
    showError(key === "" ? "" : error.message);
    return true;
  }
  numFailures += 1;
  const isFinal = error instanceof Refusal && error.status < 500;
  showError(error instanceof Refusal ? error.message : `The coordinator does not answer: ${error.message}`);
  return isFinal;
}

function showState(state) {
  showTiles(state);
  at("workers-section").hidden = state.workers === null;
  if (state.workers !== null) workers.show(state.workers);
  workflows.show(state.workflows);
  stages.showLegend(at("stages"));
  showAttainment(state.attainment);
  showPredictions(state.predictions);
  at("load-section").hidden = state.totals === null;
  if (state.totals !== null) showLoad(state.totals, state.attainment.bucket_s);
  at("estimates-section").hidden = state.estimates === null;
  if (state.estimates !== null) at("estimate-rows").replaceChildren(...state.estimates.map(estimateLine));
}

function sums(attainment) {
  return OUTCOMES.map((_, kind) => attainment.counts.reduce((sum, row) => sum + row[kind], 0));
}

function showTiles(state) {
  const [met, missed] = sums(state.attainment);
  const tiles = [["attainment, 30 min", met + missed === 0 ? "-" : percent(met / (met + missed))]];
  if (state.totals !== null) {
    const { status, num_queued, num_running, num_workflows } = state.totals;
    tiles.unshift(["health", status]);
    tiles.push(["requests queued", num_queued], ["requests at workers", num_running]);
    tiles.push(["workflows in progress", num_workflows]);
  } else {
    tiles.unshift(["tenant", state.tenant]);
  }
  const place = at("totals");
  if (place.children.length !== tiles.length) {
    place.replaceChildren(
      ...tiles.map(() => {
        const tile = element("div");
        tile.append(element("dt"), element("dd"));
        return tile;
      }),
    );
  }
  tiles.forEach(([name, value], index) => {
    setText(place.children[index].firstChild, name);
    setText(place.children[index].lastChild, value);
  });
}

function showAttainment(attainment) {
  const [met, missed, best, cancelled] = sums(attainment);
  const label = `In ${Math.round((attainment.counts.length * attainment.bucket_s) / 60)} minutes: ${met} met, ${missed} missed`;
  at("attainment").replaceChildren(
    stackedBars(attainment.counts, OUTCOMES, attainment.bucket_s, `${label} their deadline.`),
  );
  showLegend(at("attainment-legend"), [
    ["met", `met (${met})`],
    ["missed", `missed (${missed})`],
    ["best", `no deadline (${best})`],
    ["cancelled", `cancelled (${cancelled})`],
  ]);
}

function showPredictions(rows) {
  const points = rows.map(([id, predicted, actual, met]) => ({
    x: predicted,
    y: actual,
    kind: met === null ? "best" : met ? "met" : "missed",
    title: visible(`${id}: predicted ${seconds(predicted)}, took ${seconds(actual)}`),
  }));
  const ratios = rows.map(([, predicted, actual]) => actual / predicted).sort((a, b) => a - b);
  const middle = ratios[Math.floor(ratios.length / 2)];
  const said =
    ratios.length === 0
      ? "none yet: the first workflows of a type are not predicted"
      : `${ratios.length} workflows; actual / predicted: median ${middle.toFixed(2)}`;
  at("predictions").replaceChildren(scatter(points, `Across: predicted; up: actual. ${said}.`));
  showLegend(at("predictions-legend"), [
    ["met", "met"], ["missed", "missed"], ["best", "no deadline"], ["", `across: predicted, up: actual. ${said}`],
  ]);
}

function showLoad(totals, bucketSeconds) {
  const [queued, running] = [totals.most_queued, totals.most_running];
  const label = `At most ${Math.max(...queued)} queued, ${Math.max(...running)} at workers.`;
  at("load").replaceChildren(lines({ queued, running }, bucketSeconds, label));
  showLegend(at("load-legend"), [["queued", "queued (most)"], ["running", "at workers (most)"]]);
}

function estimateLine(row) {
  const line = element("tr");
  line.append(
    cell(row.estimate),
    cell(row.workflow_type || "-", "name"),
    cell(percent(row.error_frac), "number"),
    cell(percent(row.bias_frac), "number"),
  );
  return line;
}

function say(text) {
  at("status").textContent = text;
}

function showError(text) {
  setText(at("error"), text);
  at("error").hidden = text === "";
}

function goHome() {
  history.pushState(null, "", "/dashboard");
  arrive();
}

function pause() {
  isPaused = !isPaused;
  at("pause").setAttribute("aria-pressed", String(isPaused));
  at("pause").textContent = isPaused ? "Paused" : "Pause";
  if (isPaused) clearTimeout(timer);
  else load();
}

function useKey() {
  const given = at("key").value.trim();
  if (given === key && numFailures === 0 && !at("overview").hidden) return;
  key = given;
  load(true);
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  const isField = event.target.matches("input, textarea, select");
  if (event.key === "Escape" && workflowShown() !== null) goHome();
  else if (event.key === "/" && !isField) {
    event.preventDefault();
    at("workflow").focus();
  } else if (event.key === "p" && !isField) pause();
});
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : load()));
window.addEventListener("popstate", arrive);
at("pause").addEventListener("click", pause);
at("home").addEventListener("click", (event) => {
  event.preventDefault();
  goHome();
});
at("find").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = at("workflow").value.trim();
  if (id === "") return;
  history.pushState(null, "", ONE + encodeURIComponent(id));
  arrive();
});
at("key").addEventListener("keydown", (event) => {
  if (event.key === "Enter") useKey();
});
at("key").addEventListener("change", useKey);
arrive();
