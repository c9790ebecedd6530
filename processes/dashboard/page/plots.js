// Four plots of the last minutes, drawn by uPlot (the global `uPlot`).

const POINT_COUNT_MAX = 1200;

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const seriesColour = (index) => style(`--series-${index % 6}`);

/** Which lines each plot has: label, colour, dashes, and how to find its value in a point. */
const PLOTS = {
  offsets: (names) => [
    { label: "head of the log", stroke: style("--head"), dash: [6, 4], value: (point) => point.head },
    ...names.map((name, index) => consumerLine(name, index, 1)),
  ],
  lag: (names) => names.map((name, index) => consumerLine(name, index, 2)),
  totals: (names) => [
    { label: "SQL", stroke: style("--sql"), dash: [6, 4], value: (point) => point.sql_km },
    ...names.map((name, index) => consumerLine(name, index, 3)),
  ],
  rate: () => [{ label: "rides/s", stroke: style("--accent"), value: (point) => point.rides_per_s }],
};

function consumerLine(name, index, place) {
  return {
    label: name,
    stroke: seriesColour(index),
    value: (point) => point.consumers.find((consumer) => consumer[0] === name)?.[place],
  };
}

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

  /** The points of the last minutes. Those from before a restart of the server are kept. */
  restart(points) {
    const first = points[0]?.at_ms ?? Infinity;
    this.points = [...this.points.filter((point) => point.at_ms < first), ...points].slice(-POINT_COUNT_MAX);
    this.#draw();
  }

  /** One more. */
  add(point) {
    if (point.at_ms === this.points.at(-1)?.at_ms) return;
    // Later ones are there only if the server's clock was put back.
    while (this.points.at(-1)?.at_ms > point.at_ms) this.points.pop();
    this.points.push(point);
    if (this.points.length > POINT_COUNT_MAX) this.points.shift();
    this.#draw();
  }

  /** The colour of a consumer's lines. */
  colourOf(name) {
    return seriesColour(Math.max(0, this.#names.indexOf(name)));
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
    // What is not known is a gap in the line, not a nought.
    return [times, ...PLOTS[id](this.#names).map((line) => shown.map((point) => line.value(point) ?? null))];
  }

  #build() {
    const axis = { stroke: style("--faint"), grid: { stroke: style("--line"), width: 1 }, ticks: { stroke: style("--line") } };
    for (const id of Object.keys(PLOTS)) {
      this.#plots.get(id)?.destroy();
      const lines = PLOTS[id](this.#names);
      const series = [{}, ...lines.map(({ label, stroke, dash }) => ({ label, stroke, dash, width: 1.75, points: { show: false } }))];
      const options = {
        ...sizeOf(id),
        series,
        axes: [{ ...axis, space: 80, values: (_, ticks) => ticks.map(clock) }, { ...axis, size: 64, values: (_, ticks) => ticks.map((tick) => tick.toLocaleString("en")) }],
        scales: { y: { range: (_, low, high) => spread(id, low, high) } },
        legend: { show: false },
        cursor: { drag: { x: false, y: false } },
      };
      this.#plots.set(id, new uPlot(options, this.#data(id), element(id)));
    }
  }
}

/** Rates and lags are drawn from nought on; offsets and totals around their values, and a flat line in the middle. */
function spread(id, low, high) {
  if (low === null || high === null) return [0, 1];
  if (id === "lag" || id === "rate") return [0, Math.max(1, high * 1.1)];
  const margin = Math.max((high - low) * 0.05, Math.abs(high) * 1e-6, 1);
  return [low - margin, high + margin];
}

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");
const element = (id) => document.getElementById(`plot-${id}`);
const sizeOf = (id) => ({ width: Math.max(120, element(id).clientWidth), height: 200 });
