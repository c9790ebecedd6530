// Four plots of the last minutes, drawn by uPlot (the global `uPlot`).

import { consumerLines, referenceLine, singleLine } from "/lines.js";

const POINT_COUNT_MAX = 1200;

/** Steps of an axis of records: 1, 2, 5, 10 and so on. A fraction of a record would be nonsense. */
const WHOLE_STEPS = Array.from({ length: 13 }, (_, power) => [1, 2, 5].map((step) => step * 10 ** power)).flat();

/** The lines of each plot, the lowest first, and how to find each line's value in a point. */
const PLOTS = {
  offsets: (names) => [
    { ...referenceLine("head of the log"), value: (point) => point.head },
    ...ofConsumers(names, 1),
  ],
  lag: (names) => ofConsumers(names, 2),
  totals: (names) => [
    { ...referenceLine("SQL"), value: (point) => point.sql_km },
    ...ofConsumers(names, 3),
  ],
  rate: () => [{ ...singleLine("rides per second"), value: (point) => point.rides_per_s }],
};

/** Plots of whole numbers. */
const ARE_WHOLE = ["offsets", "lag"];

/** A consumer in a point is a list: name, checkpoint, lag, total. `place` is the place of the value. */
const ofConsumers = (names, place) => consumerLines(names).map((line) => ({
  ...line, value: (point) => point.consumers.find((consumer) => consumer[0] === line.label)?.[place],
}));

export class Plots {
  points = [];
  minutes = 10;
  #plots = new Map();
  #names = [];

  constructor() {
    const redraw = () => this.#build();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    this.resizing = new ResizeObserver(() => {
      for (const [id, plot] of this.#plots) plot.setSize(sizeOf(id));
    });
    for (const id of Object.keys(PLOTS)) this.resizing.observe(element(id));
  }

  /** Called when there are other consumers or other colours. */
  whenLinesChange = () => {};

  /** Takes the server's points of the last minutes. Older points, from before a restart of the server, stay. */
  restart(points) {
    const first = points[0]?.at_ms ?? Infinity;
    this.points = [...this.points.filter((point) => point.at_ms < first), ...points].slice(-POINT_COUNT_MAX);
    this.#draw();
  }

  /** Adds a point. */
  add(point) {
    if (point.at_ms === this.points.at(-1)?.at_ms) return;
    // Points later than this one exist only if the server's clock was put back.
    while (this.points.at(-1)?.at_ms > point.at_ms) this.points.pop();
    this.points.push(point);
    if (this.points.length > POINT_COUNT_MAX) this.points.shift();
    this.#draw();
  }

  /** The lines of the consumers, with the names as labels. */
  get lines() {
    return consumerLines(this.#names);
  }

  show(minutes) {
    this.minutes = minutes;
    this.#draw();
  }

  #draw() {
    const names = [...new Set(this.points.flatMap((point) => point.consumers.map((consumer) => consumer[0])))].sort();
    if (this.#plots.size === 0 || names.join("\n") !== this.#names.join("\n")) {
      this.#names = names;
      this.#build();
      return;
    }
    for (const [id, plot] of this.#plots) plot.setData(this.#data(id));
  }

  #data(id) {
    const since = (this.points.at(-1)?.at_ms ?? 0) - this.minutes * 60_000;
    const shown = this.points.filter((point) => point.at_ms >= since);
    const times = shown.map((point) => point.at_ms / 1000);
    // An unknown value is a gap in the line, not a zero.
    return [times, ...PLOTS[id](this.#names).map((line) => shown.map((point) => line.value(point) ?? null))];
  }

  #build() {
    const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const axis = { stroke: style("--faint"), grid: { stroke: style("--line"), width: 1 }, ticks: { stroke: style("--line") } };
    const times = { ...axis, size: 32, space: 80, values: (_, ticks) => ticks.map(clock) };
    for (const id of Object.keys(PLOTS)) {
      this.#plots.get(id)?.destroy();
      const lines = PLOTS[id](this.#names);
      const values = { ...axis, size: widthOfLabels, values: (_, ticks) => ticks.map((tick) => tick.toLocaleString("en")) };
      if (ARE_WHOLE.includes(id)) values.incrs = WHOLE_STEPS;
      const options = {
        ...sizeOf(id),
        series: [{}, ...lines.map(({ label, stroke, width, dash }) => ({ label, stroke, width, dash, points: { show: false } }))],
        axes: [times, values],
        scales: { y: { range: (_, low, high) => spread(id, low, high) } },
        legend: { show: false },
        cursor: { drag: { x: false, y: false } },
      };
      this.#plots.set(id, new uPlot(options, this.#data(id), element(id)));
    }
    this.whenLinesChange();
  }
}

/** The space left of a plot, wide enough for its longest number. */
const widthOfLabels = (_, labels) => 24 + 7 * Math.max(3, ...(labels ?? []).map((label) => label.length));

/** The range of an axis. Rates and lags begin at zero. Offsets and totals surround their values; a flat line is in the middle. */
function spread(id, low, high) {
  if (low === null || high === null) return [0, 1];
  if (id === "lag") return [0, Math.max(1, Math.ceil(high * 1.1))];
  if (id === "rate") return [0, Math.max(1, high * 1.1)];
  const margin = Math.max((high - low) * 0.05, Math.abs(high) * 1e-6, 1);
  return [low - margin, high + margin];
}

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");
const element = (id) => document.getElementById(`plot-${id}`);
const sizeOf = (id) => ({ width: Math.max(120, element(id).clientWidth), height: 200 });
