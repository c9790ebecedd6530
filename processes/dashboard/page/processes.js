// Servers and processes: whether each answers, and its process id.

import { byId, make, mark, write } from "/dom.js";
import { span } from "/words.js";

/** When each process started, to count the restarts that this page has seen. */
const starts = new Map();

/** The process id with which each process answered last. */
const pids = new Map();

export function showProcesses({ at_ms, postgres, redis, processes }) {
  const items = [
    serverItem("PostgreSQL", postgres),
    serverItem("Redis", redis),
    ...processes.map((process) => processItem(process, at_ms)),
  ];
  const list = byId("processes");
  items.forEach(({ name, state, pid, note }, index) => {
    const item = list.children[index] ?? list.appendChild(listItem());
    mark(item, "data-state", state);
    const [nameText, pidText, noteText] = item.children;
    write(nameText, name);
    write(pidText, pid ? `pid ${pid}` : "");
    write(noteText, note);
  });
  while (list.children.length > items.length) list.lastChild.remove();
}

function listItem() {
  const item = make("li", null);
  item.append(make("span", null, { class: "name" }), " ", make("span", null, { class: "pid" }), " ", make("small", null));
  return item;
}

const serverItem = (name, { is_up, answer_ms }) => ({
  name, state: is_up ? "up" : "down", note: is_up ? `answers in ${answer_ms.toFixed(1)} ms` : "does not answer",
});

function processItem({ name, is_ready, waits_for, pid, started_at_s, is_leader }, atMs) {
  if (is_ready === null) return { name, state: "down", note: pids.has(name) ? `does not answer; was pid ${pids.get(name)}` : "does not answer" };
  if (pid !== null) pids.set(name, pid);
  const seen = starts.get(name) ?? { started_at_s, restartCount: 0 };
  if (started_at_s !== null && started_at_s !== seen.started_at_s) {
    seen.restartCount += 1;
    seen.started_at_s = started_at_s;
  }
  starts.set(name, seen);
  const notes = [is_ready ? "ready" : `not ready: ${waits_for.join(", ")}`];
  if (is_leader) notes.push("leads");
  if (is_leader === false) notes.push("stands by");
  if (started_at_s !== null) notes.push(`up ${span(atMs - started_at_s * 1000)}`);
  if (seen.restartCount) notes.push(`restarted ${seen.restartCount} ×`);
  return { name, state: is_ready ? "up" : "late", pid, note: notes.join(", ") };
}
