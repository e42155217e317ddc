// The page: what is asked, what is shown, and which keys do what.

import { listenToArrows, showRows } from "./grid.js";
import { showSql } from "./sql.js";
import { getJson, postForEvents, Refusal } from "./stream.js";
import { element, visible } from "./text.js";
import { Timeline } from "./timeline.js";

const at = (id) => document.getElementById(id);
const timeline = new Timeline(at("stage-rows"), at("clock"));
const history = [];
let place = 0; // in the history; its length: the question being written
let draft = "";
let running = null; // the AbortController of the question that is asked
let key = "";
let sql = "";

async function loadState() {
  try {
    const state = await getJson("/ask/databases", key);
    fill(at("database"), state.databases, (one) => [one.name, `${one.name} (${one.dialect})`]);
    fill(at("model"), state.models, (name) => [name, name]);
    at("model-field").hidden = state.models.length < 2;
    at("deadline").max = state.max_deadline_s;
    if (at("deadline").value === "") at("deadline").value = state.deadline_s;
    at("key-row").hidden = key === "";
    showError(state.databases.length === 0 ? "There is no database that you may ask." : "");
    if (document.activeElement === document.body || document.activeElement === at("key")) {
      at("question").focus();
    }
  } catch (error) {
    const wantsKey = error instanceof Refusal && error.status === 401;
    if (wantsKey) {
      at("key-row").hidden = false;
      at("key").focus();
    }
    showError(wantsKey && key === "" ? "" : error.message);
    say(wantsKey ? "An API key is needed." : "");
  }
}

function fill(select, values, described) {
  const chosen = select.value;
  const options = values.map((value) => {
    const [name, text] = described(value);
    const option = element("option", text);
    option.value = name;
    return option;
  });
  select.replaceChildren(...options);
  if (options.some((option) => option.value === chosen)) select.value = chosen;
}

async function ask() {
  if (running !== null || !at("form").reportValidity()) return;
  const question = at("question").value.trim();
  if (question === "") {
    at("question").focus();
    return;
  }
  remember(question);
  clear();
  const body = { database: at("database").value, question, deadline_s: Number(at("deadline").value) };
  if (!at("model-field").hidden) body.model = at("model").value;
  const abort = new AbortController();
  setRunning(abort);
  let isAnswered = false;
  try {
    await postForEvents("/ask/questions", body, key, abort.signal, (name, data) => {
      isAnswered ||= name === "answer";
      show(name, data);
    });
    if (!isAnswered) showError("The connection ended before the answer.");
  } catch (error) {
    if (abort.signal.aborted) say("Stopped.");
    else showError(error instanceof Refusal ? error.message : `No answer: ${error.message}`);
    if (!abort.signal.aborted) say("");
    if (error.status === 401) at("key-row").hidden = false;
  } finally {
    timeline.stop();
    setRunning(null);
  }
}

function show(name, data) {
  if (name === "opening") {
    say(`Opening ${visible(data.database)} ...`);
    timeline.start(data.deadline_s);
    at("stages-section").hidden = false;
  } else if (name === "answer") {
    showAnswer(data);
  } else {
    timeline.sync(data.at_s);
    if (name === "stage_started") {
      say(`${data.stage} ...`);
      timeline.stageStarted(data);
    } else if (name === "stage_finished") {
      timeline.stageFinished(data);
    }
  }
}

function showAnswer(answer) {
  const left = [...answer.skipped.map((stage) => `${stage}: not done at all`), ...answer.dropped];
  at("dropped").replaceChildren(...left.map((text) => element("li", text)));
  at("dropped-section").hidden = left.length === 0;
  sql = answer.sql ?? "";
  showSql(at("sql"), sql);
  at("sql-section").hidden = sql === "";
  const ran = answer.outcome === "rows" || answer.outcome === "empty";
  if (ran) {
    showRows(at("rows"), answer.columns, answer.rows);
    const cut = answer.truncated ? "; there are more, which the limits cut off" : "";
    at("rows-note").textContent = `${counted(answer.rows.length, "row")}${cut}`;
  }
  at("rows-section").hidden = !ran;
  showError(ran ? "" : `${answer.outcome}: ${answer.message}`);
  at("attempt-list").replaceChildren(...answer.candidates.map(attempt));
  at("attempts").hidden = answer.candidates.length === 0;
  const deadline = answer.met_deadline ? "within the deadline" : "after the deadline";
  const found = ran ? counted(answer.rows.length, "row") : "No rows";
  say(`${found} after ${answer.elapsed_s.toFixed(1)} s, ${deadline}. Workflow ${answer.workflow_id}.`);
}

function attempt(candidate) {
  const line = element("li");
  const facts = [candidate.strategy, candidate.outcome, counted(candidate.num_rows, "row")];
  if (candidate.num_revisions > 0) facts.push(counted(candidate.num_revisions, "revision"));
  if (candidate.message) facts.push(candidate.message);
  line.append(element("span", facts.join(", ")));
  if (candidate.sql !== null) {
    const text = element("pre");
    showSql(text, candidate.sql);
    line.append(text);
  }
  return line;
}

function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function clear() {
  for (const id of ["dropped-section", "sql-section", "rows-section", "attempts"]) at(id).hidden = true;
  showError("");
  timeline.clear();
}

function setRunning(abort) {
  running = abort;
  at("ask").disabled = abort !== null;
  at("stop").disabled = abort === null;
  document.body.setAttribute("aria-busy", String(abort !== null));
}

function say(text) {
  at("status").textContent = text;
}

function showError(text) {
  at("error").textContent = visible(text);
  at("error").hidden = text === "";
}

function remember(question) {
  if (history[history.length - 1] !== question) history.push(question);
  place = history.length;
}

// Up on the first line and Down on the last one, as in a shell.
function browseHistory(event) {
  const box = at("question");
  const isUp = event.key === "ArrowUp";
  const crossed = isUp ? box.value.slice(0, box.selectionStart) : box.value.slice(box.selectionEnd);
  const next = place + (isUp ? -1 : 1);
  if (crossed.includes("\n") || next < 0 || next > history.length) return;
  if (place === history.length) draft = box.value;
  place = next;
  box.value = place === history.length ? draft : history[place];
  box.setSelectionRange(box.value.length, box.value.length);
  event.preventDefault();
}

function isPlain(event) {
  return !(event.ctrlKey || event.metaKey || event.altKey || event.shiftKey);
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  const isField = event.target.matches("input, textarea, select");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    ask();
  } else if (event.key === "Escape") {
    if (running !== null) running.abort();
    else at("question").focus();
  } else if (event.key === "/" && isPlain(event) && !isField) {
    event.preventDefault();
    at("question").focus();
  } else if (event.target === at("question") && isPlain(event)) {
    if (event.key === "ArrowUp" || event.key === "ArrowDown") browseHistory(event);
  }
});

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("stop").addEventListener("click", () => running?.abort());
at("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !isPlain(event)) return;
  event.preventDefault();
  key = at("key").value.trim();
  loadState();
});
at("key").addEventListener("change", () => {
  key = at("key").value.trim();
  loadState();
});
at("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(sql);
    say("SQL copied.");
  } catch {
    getSelection().selectAllChildren(at("sql"));
    say("SQL selected; Ctrl+C copies it.");
  }
});
listenToArrows(at("rows"));
loadState();
