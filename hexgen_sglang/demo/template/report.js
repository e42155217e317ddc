"use strict";
/* Draws the timeline of report.json: lanes of bars in one SVG, as wide as the page allows. */
(() => {
  const report = JSON.parse(document.getElementById("report").textContent);
  const holder = document.getElementById("timeline");
  const legend = document.getElementById("legend");
  const tip = document.getElementById("tip");
  const SVG = "http://www.w3.org/2000/svg";
  const ROW = 17, GAP = 3, LANE_GAP = 12, AXIS = 26, RIGHT = 14;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let view = "workers";
  let pinned = null;

  /* The golden angle keeps neighbours apart for any number of colours. */
  const hue = (index) => ((view === "workers" ? 25 : 285) + index * 137.508) % 360;
  const lightness = (index) => (index % 2 ? 0.74 : 0.58);
  const colour = (index) => `oklch(${lightness(index)} 0.13 ${hue(index).toFixed(1)})`;
  const inkOn = (index) => (index % 2 ? "#15171b" : "#fff");

  const seconds = (value) => (value === null ? "–" : `${value.toFixed(value < 10 ? 2 : 1)} s`);
  const workerIndex = new Map(report.workers.map((worker, index) => [worker.worker_id, index]));
  const bars = report.workflows.flatMap((flow, flowIndex) =>
    flow.stages.map((request) => ({
      request, flow, flowIndex, workerIndex: workerIndex.get(request.worker) ?? null,
    })));
  const ends = report.workflows.flatMap((flow) => [
    ...flow.stages.map((request) => request.end_s),
    flow.deadline_s === null ? 0 : flow.start_s + flow.deadline_s,
  ]);
  const lastEnd = Math.max(1, ...bars.map((bar) => bar.request.end_s));
  const lastMark = Math.max(lastEnd, ...ends);

  function element(name, attributes, parent, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.appendChild(made);
    return made;
  }

  /* Bars that overlap in time get rows of their own; each takes the first row that is free. */
  function pack(items, begin) {
    const rowEnds = [];
    for (const item of [...items].sort((a, b) => begin(a) - begin(b))) {
      let row = rowEnds.findIndex((end) => end <= begin(item) + 1e-9);
      if (row < 0) row = rowEnds.push(0) - 1;
      rowEnds[row] = Math.max(item.request.end_s, begin(item));
      item.row = row;
    }
    return Math.max(1, rowEnds.length);
  }

  function lanes() {
    if (view === "workers") {
      const sent = bars.filter((bar) => bar.request.dispatched_s !== null);
      return report.workers.map((worker, index) => ({
        name: worker.worker_id,
        note: `${worker.num_requests} requests`,
        bars: sent.filter((bar) => bar.workerIndex === index),
        begin: (bar) => bar.request.dispatched_s,
      }));
    }
    return report.workflows.map((flow, index) => ({
      name: `${index + 1}. ${flow.question}`,
      note: "",
      flow,
      bars: bars.filter((bar) => bar.flowIndex === index),
      begin: (bar) => bar.request.start_s,
    }));
  }

  function tickStep(span, width) {
    const wanted = (span * 90) / Math.max(width, 90);
    const power = 10 ** Math.floor(Math.log10(wanted));
    return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= wanted);
  }

  function shorten(text, pixels, perLetter) {
    const letters = Math.floor(pixels / perLetter);
    if (text.length <= letters) return text;
    return letters < 3 ? "" : `${text.slice(0, letters - 1)}…`;
  }

  function draw() {
    holder.replaceChildren();
    const width = Math.max(320, holder.clientWidth);
    const left = view === "workers" ? Math.min(130, width * 0.3) : Math.min(270, width * 0.34);
    const span = (view === "workers" ? lastEnd : lastMark) * 1.01;
    const x = (time) => left + (time / span) * (width - left - RIGHT);
    const all = lanes();
    for (const lane of all) lane.rows = pack(lane.bars, lane.begin);
    const height = AXIS + all.reduce((sum, lane) => sum + lane.rows * (ROW + GAP) + LANE_GAP, 0);
    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img",
      "aria-label": "Timeline of requests; the tables below hold the same figures" });
    const ground = element("g", {}, svg);
    const step = tickStep(span, width - left);
    for (let tick = 0; tick <= span + 1e-9; tick += step) {
      element("line", { x1: x(tick), x2: x(tick), y1: AXIS - 6, y2: height, class: "grid" }, ground);
      element("text", { x: x(tick), y: 13, "text-anchor": "middle" }, ground,
        `${Number(tick.toFixed(3))} s`);
    }
    let top = AXIS;
    for (const lane of all) {
      const tall = lane.rows * (ROW + GAP) - GAP;
      ground.insertBefore(element("rect", { x: left, y: top - 3, width: width - left - RIGHT,
        height: tall + 6, rx: 4, class: "lane" }), ground.firstChild);
      const name = element("text", { x: 0, y: top + 13, class: "name" }, svg,
        shorten(lane.name, left - 12, 7.4));
      element("title", {}, name, lane.name);
      if (lane.note && lane.rows > 1) element("text", { x: 0, y: top + 30 }, svg, lane.note);
      for (const bar of lane.bars) drawBar(svg, bar, x, top + bar.row * (ROW + GAP), lane.begin);
      if (lane.flow && lane.flow.deadline_s !== null) drawDeadline(svg, lane.flow, x, top, tall);
      top += tall + GAP + LANE_GAP;
    }
    holder.appendChild(svg);
    drawLegend();
    highlight(pinned);
  }

  function drawBar(svg, bar, x, y, begin) {
    const { request } = bar;
    const index = view === "workers" ? bar.flowIndex : bar.workerIndex;
    const key = index === null ? "none" : String(index);
    const fill = index === null ? "var(--muted)" : colour(index);
    const runs = request.dispatched_s ?? request.end_s;
    if (view === "workflows" && x(runs) - x(request.start_s) > 0.5) {
      watch(element("rect", { x: x(request.start_s), y: y + ROW / 2 - 1.5, height: 3,
        width: x(runs) - x(request.start_s), fill, opacity: 0.55, class: "queue",
        "data-key": key }, svg), bar);
    }
    const from = Math.max(begin(bar), runs);
    const wide = Math.max(2.5, x(request.end_s) - x(from));
    watch(element("rect", { x: x(from), y, width: wide, height: ROW, rx: 3, fill, class: "run",
      "data-key": key }, svg), bar);
    const label = wide > 34 ? shorten(request.stage, wide - 10, 6.3) : "";
    if (label) {
      element("text", { x: x(from) + 5, y: y + 12.5, class: "inside", "data-key": key,
        style: `fill: ${index === null ? "var(--card)" : inkOn(index)}` }, svg, label);
    }
  }

  function drawDeadline(svg, flow, x, top, tall) {
    const at = x(flow.start_s + flow.deadline_s);
    const missed = flow.met_deadline === false ? " missed" : "";
    element("line", { x1: at, x2: at, y1: top - 3, y2: top + tall + 3, class: `due${missed}` }, svg);
    element("path", { d: `M${at} ${top - 3} l-5 0 l5 6 z`, class: `due-flag${missed}` }, svg);
  }

  function watch(shape, bar) {
    shape.addEventListener("mousemove", (event) => showTip(event, bar));
    shape.addEventListener("mouseenter", () => highlight(shape.dataset.key));
    shape.addEventListener("mouseleave", () => { tip.hidden = true; highlight(pinned); });
    shape.addEventListener("click", () => pin(shape.dataset.key));
  }

  function showTip(event, { request, flow }) {
    const part = (name, value) => {
      const row = document.createElement("tr");
      for (const text of [name, value]) row.appendChild(document.createElement("td")).textContent = text;
      return row;
    };
    const title = document.createElement("b");
    const sibling = request.siblings > 1 ? ` ${request.sibling_index + 1}/${request.siblings}` : "";
    title.textContent = `${request.stage}${sibling} on ${request.worker ?? "no worker"}`;
    const question = document.createElement("div");
    question.textContent = flow.question;
    const table = document.createElement("table");
    table.append(
      part("accepted at", seconds(request.start_s)),
      part("queued", seconds(request.dispatched_s === null ? null : request.dispatched_s - request.start_s)),
      part("first byte after", seconds(request.first_byte_s === null ? null : request.first_byte_s - request.start_s)),
      part("took", seconds(request.e2e_s)),
      part("prompt tokens", `${request.prompt_tokens ?? "–"}, ${request.cached_tokens ?? 0} from cache`),
      part("output tokens", String(request.output_tokens ?? "–")),
    );
    if (request.outcome !== "completed") table.append(part("outcome", request.outcome));
    tip.replaceChildren(title, question, table);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - box.width - 8)}px`;
    const below = event.clientY + 16;
    tip.style.top = `${below + box.height > innerHeight ? event.clientY - box.height - 12 : below}px`;
  }

  function highlight(key) {
    for (const shape of holder.querySelectorAll("[data-key]")) {
      shape.classList.toggle("dim", key !== null && shape.dataset.key !== key);
    }
    for (const button of legend.children) {
      button.setAttribute("aria-pressed", String(button.dataset.key === pinned));
    }
  }

  function pin(key) {
    pinned = pinned === key ? null : key;
    highlight(pinned);
  }

  function drawLegend() {
    const names = view === "workers"
      ? report.workflows.map((flow, index) => `${index + 1}. ${flow.question}`)
      : report.workers.map((worker) => worker.worker_id);
    legend.replaceChildren(...names.map((name, index) => {
      const button = document.createElement("button");
      const chip = document.createElement("i");
      chip.className = "chip";
      chip.style.background = colour(index);
      button.append(chip, name);
      button.title = name;
      button.dataset.key = String(index);
      button.addEventListener("mouseenter", () => highlight(button.dataset.key));
      button.addEventListener("mouseleave", () => highlight(pinned));
      button.addEventListener("click", () => pin(button.dataset.key));
      return button;
    }));
    document.getElementById("caption").textContent = view === "workers"
      ? "Each bar is one LLM request at its worker, coloured by workflow. Rows of a lane run at the same time. Point at a bar for its figures; click to keep its workflow lit."
      : "Each bar is one LLM request, coloured by worker; the thin line before it is its wait in the coordinator's queue. The flag is the workflow's deadline, red when it was missed.";
  }

  for (const tab of document.querySelectorAll("[data-view]")) {
    tab.addEventListener("click", () => {
      view = tab.dataset.view;
      pinned = null;
      for (const other of document.querySelectorAll("[data-view]")) {
        other.setAttribute("aria-selected", String(other === tab));
      }
      draw();
    });
  }
  for (const chip of document.querySelectorAll("[data-chip]")) {
    chip.style.background = colour(Number(chip.dataset.chip));
  }
  for (const button of document.querySelectorAll("button.more")) {
    button.addEventListener("click", () => {
      const open = button.getAttribute("aria-expanded") !== "true";
      button.setAttribute("aria-expanded", String(open));
      button.closest("tbody").querySelector(".detail").hidden = !open;
    });
  }
  if (location.hash === "#workflows") document.querySelector('[data-view="workflows"]').click();
  dark.addEventListener("change", draw);
  new ResizeObserver(draw).observe(holder);
  draw();
})();
