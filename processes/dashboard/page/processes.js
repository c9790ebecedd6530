// Servers and processes: whether each answers, and its process id.

import { byId, make, mark, write } from "/dom.js";
import { span } from "/words.js";

/** When each process started, to count the restarts that this page has seen. */
const starts = new Map();

/** The process id with which each process answered last. */
const pids = new Map();

export function showProcesses({ at_ms, postgres, redis, processes, streams }) {
  const items = [
    serverItem("PostgreSQL", postgres),
    serverItem("Redis", redis),
    ...processes.map((process) => processItem(process, at_ms, streams.length)),
  ];
  const list = byId("processes");
  items.forEach(({ name, state, word, notes }, index) => {
    const item = list.children[index] ?? list.appendChild(listItem());
    mark(item, "data-state", state);
    [name, word, notes.join(", ")].forEach((text, place) => write(item.children[place], text));
  });
  while (list.children.length > items.length) list.lastChild.remove();
}

function listItem() {
  const item = make("li", null);
  item.append(make("span", null, { class: "name" }), " ", make("span", null, { class: "word" }), " ", make("small", null));
  return item;
}

const serverItem = (name, { is_up, answer_ms }) => (is_up
  ? { name, state: "up", word: "up", notes: [`answers in ${answer_ms.toFixed(1)} ms`] }
  : { name, state: "down", word: "down", notes: ["does not answer"] });

function processItem(process, atMs, partitionCount) {
  const { name, is_ready, waits_for, pid, started_at_s } = process;
  if (is_ready === null) {
    return { name, state: "down", word: "down", notes: [pids.has(name) ? `was pid ${pids.get(name)}` : "does not answer"] };
  }
  if (pid !== null) pids.set(name, pid);
  const notes = [];
  if (pid !== null) notes.push(`pid ${pid}`);
  if (started_at_s !== null) notes.push(`up ${span(atMs - started_at_s * 1000)}`);
  const restartCount = countRestarts(name, started_at_s);
  if (restartCount) notes.push(`restarted ${restartCount} ×`);
  if (!is_ready) notes.push(`waits for: ${waits_for.join(", ")}`);
  return { name, state: is_ready ? "up" : "late", word: wordOf(process, partitionCount), notes };
}

function wordOf({ is_ready, is_leader, leads }, partitionCount) {
  if (!is_ready) return "not ready";
  if (is_leader === null) return "ready";
  if (!is_leader) return "stands by";
  return partitionCount > 1 ? `leads ${leads.length} of ${partitionCount}` : "leads";
}

function countRestarts(name, startedAtS) {
  const seen = starts.get(name) ?? { startedAtS, restartCount: 0 };
  if (startedAtS !== null && startedAtS !== seen.startedAtS) {
    seen.restartCount += 1;
    seen.startedAtS = startedAtS;
  }
  starts.set(name, seen);
  return seen.restartCount;
}
