// Charts as SVG: no library, and nothing that the page's own colours do not reach.

const WIDTH = 640;
const HEIGHT = 240;
const EDGE = { left: 44, right: 10, top: 10, bottom: 26 };
const inner = { width: WIDTH - EDGE.left - EDGE.right, height: HEIGHT - EDGE.top - EDGE.bottom };

function svg(name, attributes, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

/** An empty chart whose `label` says what it shows to those who do not see it. */
function chart(label) {
  const frame = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label };
  return svg("svg", frame);
}

function rules(place, most, format) {
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const y = EDGE.top + inner.height * (1 - share);
    place.append(
      svg("line", { class: "rule", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y, y2: y }),
      svg("text", { x: EDGE.left - 6, y: y + 4, "text-anchor": "end" }, format(most * share)),
    );
  }
}

function ages(place, seconds) {
  for (const share of [0, 1 / 3, 2 / 3, 1]) {
    const age = Math.round(((1 - share) * seconds) / 60);
    const anchor = share === 0 ? "start" : share === 1 ? "end" : "middle";
    const x = EDGE.left + inner.width * share;
    const text = age === 0 ? "now" : `${age} min ago`;
    place.append(svg("text", { x, y: HEIGHT - 8, "text-anchor": anchor }, text));
  }
}

function niceMost(value) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(1, value)));
  const step = [1, 2, 4, 8, 10].find((one) => one * unit >= value);
  return Math.max(4, step * unit);
}

/** Bars of stacked counts, one for each bucket. `names`: the classes of the counts. */
export function stackedBars(counts, names, bucketSeconds, label) {
  const place = chart(label);
  const most = niceMost(Math.max(...counts.map((row) => row.reduce((sum, one) => sum + one, 0))));
  rules(place, most, (value) => `${value}`);
  ages(place, counts.length * bucketSeconds);
  const step = inner.width / counts.length;
  counts.forEach((row, index) => {
    let below = 0;
    row.forEach((count, kind) => {
      if (count === 0) return;
      const height = (inner.height * count) / most;
      const y = EDGE.top + inner.height - below - height;
      const x = EDGE.left + index * step + 1;
      place.append(svg("rect", { class: names[kind], x, y, width: step - 2, height }));
      below += height;
    });
  });
  return place;
}

/** Lines over the same buckets. `lines`: values by class. */
export function lines(values, bucketSeconds, label) {
  const place = chart(label);
  const most = niceMost(Math.max(...Object.values(values).flat()));
  const count = Object.values(values)[0].length;
  rules(place, most, (value) => `${value}`);
  ages(place, count * bucketSeconds);
  for (const [name, row] of Object.entries(values)) {
    const points = row.map((value, index) => {
      const x = EDGE.left + (inner.width * (index + 0.5)) / count;
      return `${x},${EDGE.top + inner.height * (1 - value / most)}`;
    });
    place.append(svg("polyline", { class: name, points: points.join(" ") }));
  }
  return place;
}

/** Points over two equal logarithmic axes, with the line where both are the same. */
export function scatter(points, label) {
  const place = chart(label);
  const all = points.flatMap((point) => [point.x, point.y]).filter((value) => value > 0);
  const from = Math.floor(Math.log10(Math.min(...all, 1)));
  const to = Math.max(from + 1, Math.ceil(Math.log10(Math.max(...all, 1))));
  const share = (value) => (Math.log10(Math.max(value, 10 ** from)) - from) / (to - from);
  const x = (value) => EDGE.left + inner.width * share(value);
  const y = (value) => EDGE.top + inner.height * (1 - share(value));
  for (let power = from; power <= to; power += 1) {
    const value = 10 ** power;
    const text = `${Number(value.toPrecision(1))} s`;
    const anchor = power === from ? "start" : power === to ? "end" : "middle";
    place.append(
      svg("line", { class: "rule", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y(value), y2: y(value) }),
      svg("line", { class: "rule", y1: EDGE.top, y2: EDGE.top + inner.height, x1: x(value), x2: x(value) }),
      svg("text", { x: EDGE.left - 6, y: y(value) + 4, "text-anchor": "end" }, text),
      svg("text", { x: x(value), y: HEIGHT - 8, "text-anchor": anchor }, text),
    );
  }
  const [low, high] = [10 ** from, 10 ** to];
  place.append(svg("line", { class: "equal", x1: x(low), y1: y(low), x2: x(high), y2: y(high) }));
  for (const point of points) {
    const dot = svg("circle", { class: point.kind, cx: x(point.x), cy: y(point.y), r: 3.2 });
    dot.append(svg("title", {}, point.title));
    place.append(dot);
  }
  return place;
}
