// Small pieces of the page: numbers in words, meters, legends, rows that are kept while they live.

import { element } from "./text.js";

/** Seconds, as precise as is of use. */
export function seconds(value) {
  if (value === null || value === undefined) return "-";
  if (Math.abs(value) >= 100) return `${value.toFixed(0)} s`;
  return `${value.toFixed(Math.abs(value) >= 10 ? 1 : 2)} s`;
}

/** A share as a percentage. */
export function percent(value) {
  return value === null || value === undefined ? "-" : `${Math.round(100 * value)} %`;
}

/** "1 row", "2 rows". */
export function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** A legend's entries: [class, text]. */
export function showLegend(place, entries) {
  place.replaceChildren(
    ...entries.map(([name, text]) => {
      const line = element("span", text);
      line.prepend(element("i", "", name));
      return line;
    }),
  );
}

/** A cell with a number, or with text. */
export function cell(text, className = "") {
  return element("td", text, className);
}

/** A bar on a track; shares of the track's width. */
export function bar(start, width, className) {
  const made = element("div", "", `bar ${className}`);
  made.style.left = `${100 * start}%`;
  made.style.width = `${100 * Math.max(0, width)}%`;
  return made;
}

/** A mark on a track. */
export function tick(at, className) {
  const made = element("div", "", `tick ${className}`);
  made.style.left = `${100 * at}%`;
  return made;
}

/** A cell that shows a share as a bar, and in words. */
export class Meter {
  constructor() {
    this.cell = element("td", "", "number");
    this.box = element("div", "", "meter");
    this.value = element("span", "", "value");
    this.track = element("div", "", "track");
    this.fill = element("div", "", "bar");
    this.track.append(this.fill);
    this.box.append(this.value, this.track);
    this.cell.append(this.box);
  }

  show(share, text) {
    setText(this.value, text);
    const width = `${100 * Math.min(1, share ?? 0)}%`;
    if (this.fill.style.width !== width) this.fill.style.width = width;
    this.fill.classList.toggle("full", share !== null && share >= 0.9);
    this.track.style.visibility = share === null ? "hidden" : "visible";
  }
}

/** Change a text only if it is another one. */
export function setText(place, text) {
  const shown = element("span", text).textContent;
  if (place.textContent !== shown) place.textContent = shown;
}
