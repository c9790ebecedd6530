// The key figures: a tile for each.

import { byId, make, mark, write } from "/dom.js";
import { count, metres, rough, span } from "/words.js";

/** Shows the figures of a sample. `known` has those of servers that do not answer now. */
export function showFigures(sample, known) {
  showTiles(byId("figures"), figuresOf(sample, known));
}

/** Shows tiles in a list. Each is a name, a figure, a note below it, and whether it is old while others are not. */
export function showTiles(list, tiles) {
  tiles.forEach(([name, value, note = "", isOld = false], index) => {
    const tile = list.children[index] ?? list.appendChild(tileOf(name));
    const [figure, small] = tile.lastChild.children;
    write(figure, value);
    write(small, note);
    mark(tile, "data-old", isOld ? "" : null);
  });
}

function tileOf(name) {
  const tile = make("div", null);
  const figure = make("dd", null);
  figure.append(make("span", null), make("small", null));
  tile.append(make("dt", name), figure);
  return tile;
}

/** The tiles. The first is twice as wide as others. */
function figuresOf(sample, known) {
  const { log, stream } = known;
  const consumers = log?.consumers ?? [];
  const sum = (name) => (log ? count(consumers.reduce((all, consumer) => all + consumer[name], 0)) : "–");
  const streamers = sample.processes.filter((process) => process.refused_count !== null);
  const refusedCount = streamers.reduce((all, process) => all + process.refused_count, 0);
  const refused = streamers.length ? `${count(refusedCount)} refused by Redis` : "";
  const lag = Math.max(0, ...consumers.map((consumer) => consumer.lag_ms));
  const kept = stream ? `${count(stream.entry_count)} entries kept` : "";
  const streamAge = stream && !sample.stream ? `${span(sample.at_ms - known.stream_at_ms)} ago` : "";
  return [
    ["Distance, by SQL", metres(sample.recount?.distance_mm)],
    ["Rides, by SQL", count(sample.recount?.ride_count)],
    ["Rides per second", rough(sample.rides_per_s)],
    ["Head of the log", count(log?.head)],
    ["Published", count(stream?.last_offset), streamAge || kept, streamAge !== ""],
    ["Longest lag", log ? `${count(lag)} ms` : "–"],
    ["Leader", leaderOf(sample)],
    ["Duplicates skipped", sum("duplicate_count"), refused],
    ["Records healed", sum("healed_count")],
    ["Crashes survived", sum("crash_count")],
    ["Dead letters", sum("dead_letter_count")],
  ];
}

function leaderOf({ log, processes }) {
  if (!log) return "–";
  if (!log.partitions.some((partition) => partition.is_led)) return "none";
  const leaders = processes.filter((process) => process.is_leader).map((process) => process.name);
  return leaders.join(", ") || "not watched";
}
