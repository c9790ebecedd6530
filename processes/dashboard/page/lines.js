// The colours, widths and dashes of the plots' lines. Consumers often have the same values, so their lines lie on each other.
// Each line is narrower than the one below it, and every second line is dashed, so every colour stays visible.

import { draw } from "/dom.js";

/** The width of the line on top. */
const WIDTH_MIN = 3;

/** Each line is this much wider than the next one above it, unless there are many. */
const WIDTH_STEP = 3;

/** No consumer's line is wider than this. */
const WIDTH_MAX = 10;

/** The dashes of the first consumer's line, of the second one's, and so on. Further consumers repeat them. */
const DASHES = [[], [18, 12], [], [6, 6], [], [2, 5]];

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The wide, pale line of the log or of SQL. It lies below all consumers: each should be on it. */
export const referenceLine = (label) => ({ label, stroke: style("--reference"), width: WIDTH_MAX + 5 });

/** The line of a plot that has no other. */
export const singleLine = (label) => ({ label, stroke: style("--accent"), width: 1.75 });

/** A line for each consumer, the widest first. */
export function consumerLines(names) {
  const last = Math.max(1, Math.min(names.length, DASHES.length) - 1);
  const step = Math.min(WIDTH_STEP, (WIDTH_MAX - WIDTH_MIN) / last);
  return names.map((label, index) => {
    const place = index % DASHES.length;
    const width = WIDTH_MIN + step * Math.max(0, last - place);
    return { label, stroke: style(`--series-${place}`), width, dash: DASHES[place] };
  });
}

/** A short piece of a line, for the legend and the table. */
export function sampleOf({ stroke, width, dash = [] }) {
  const picture = draw("svg", { class: "swatch", width: 40, height: 16, "aria-hidden": "true" });
  picture.append(draw("line", { x1: 0, x2: 40, y1: 8, y2: 8, stroke, "stroke-width": width, "stroke-dasharray": dash.join(" ") || "none" }));
  return picture;
}
