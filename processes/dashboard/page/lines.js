// How the lines of the plots look. Consumers often have the same values, so their lines lie on each other. Each line is
// narrower than the one below it and has other dashes: so every colour stays visible.

import { draw } from "/dom.js";

/** The width of the line on top, and how much wider each line below it is. */
const WIDTH_MIN = 1.5;
const WIDTH_STEP = 2;

/** As many lines have different colours, dashes and widths. More consumers than that repeat them. */
const STYLES = [
  [],
  [14, 7],
  [5, 5],
  [16, 5, 3, 5],
  [2, 4],
  [9, 3],
];

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The dashed line of the log or of SQL: drawn last, above all consumers. */
export const referenceLine = (label) => ({ label, stroke: style("--head"), width: 1.25, dash: [2, 5] });

/** The line of the only series of a plot. */
export const singleLine = (label) => ({ label, stroke: style("--accent"), width: 1.75 });

/** A line for each consumer, the widest first. */
export function consumerLines(names) {
  const count = Math.min(names.length, STYLES.length);
  return names.map((label, index) => {
    const place = index % STYLES.length;
    return { label, stroke: style(`--series-${place}`), width: WIDTH_MIN + WIDTH_STEP * Math.max(0, count - 1 - place), dash: STYLES[place] };
  });
}

/** A short piece of a line, for the legend and the table. */
export function sampleOf({ stroke, width, dash = [] }) {
  const picture = draw("svg", { class: "swatch", width: 34, height: 14, "aria-hidden": "true" });
  picture.append(draw("line", { x1: 0, x2: 34, y1: 7, y2: 7, stroke, "stroke-width": width, "stroke-dasharray": dash.join(" ") || "none" }));
  return picture;
}
