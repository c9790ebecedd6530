// Listens to the server, and keeps the page saying what was heard last, and how old that is.

import { Plots } from "/plots.js";
import { count, metres, rough, span, verdict } from "/words.js";

/** Samples come twice a second. Older ones than this are called stale. */
const STALE_MS = 4000;

const byId = (id) => document.getElementById(id);
const plots = new Plots();
let last = null; // the last sample
let heardAt = 0; // when it came, on this machine's clock
let token = null; // what the server wants to see with an order
const starts = new Map(); // when each process started, to count restarts

function make(tag, text, attributes = {}) {
  const node = document.createElement(tag);
  if (text !== null) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** Writes only what changed: a screen reader is not told the same twice, and a button keeps its focus. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// ---------------------------------------------------------------------------------------------------------------- hearing

function listen() {
  const events = new EventSource("/events");
  events.addEventListener("history", (event) => plots.restart(JSON.parse(event.data)));
  events.addEventListener("sample", (event) => {
    last = JSON.parse(event.data);
    heardAt = Date.now();
    show(last);
    showLink();
  });
  events.addEventListener("open", askForToken);
  events.addEventListener("error", () => {
    // The browser tries again by itself, unless the server refused.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
    // The server that comes may be another, with another token.
    token = null;
    setLink("lost", "connection lost: the browser tries again");
  });
}

function setLink(state, text) {
  document.body.dataset.link = state;
  write(byId("link-text"), text);
}

function showLink() {
  const age = Date.now() - heardAt;
  if (!last || document.body.dataset.link === "lost" && age > 1000) return;
  if (age > STALE_MS) setLink("stale", `stale: nothing was heard for ${span(age)}`);
  else setLink("live", "live");
}
setInterval(showLink, 500);

// ---------------------------------------------------------------------------------------------------------------- showing

function show(sample) {
  const { mark, text, why } = verdict(sample);
  document.body.dataset.verdict = sample.verdict;
  write(byId("verdict-mark"), mark);
  write(byId("verdict-text"), text);
  write(byId("verdict-why"), why);
  plots.add(pointOf(sample));
  showFigures(sample);
  if (sample.log) {
    showConsumers(sample);
    showLegend(sample.log.consumers);
  }
  showProcesses(sample);
}

function pointOf({ at_ms, log, stream, recount, rides_per_s }) {
  const km = (mm) => Number(mm) / 1e6;
  return {
    at_ms,
    head: log?.head,
    published: stream?.last_offset,
    sql_km: log && recount ? km(recount.distance_mm) : null,
    rides_per_s,
    consumers: (log?.consumers ?? []).map(({ name, last_offset, lag_records, total }) => [
      name, last_offset, lag_records, total ? km(total.distance_mm) : null,
    ]),
  };
}

function showFigures(sample) {
  const consumers = sample.log?.consumers ?? [];
  const sum = (name) => (sample.log ? count(consumers.reduce((all, consumer) => all + consumer[name], 0)) : "–");
  const streamers = sample.processes.filter((process) => process.refused_count !== null);
  const refused = streamers.length ? count(streamers.reduce((all, process) => all + process.refused_count, 0)) : "–";
  const leaders = sample.processes.filter((process) => process.is_leader).map((process) => process.name).join(", ");
  const led = sample.log ? (sample.log.is_led ? leaders || "yes" : "nobody") : "–";
  const lag = Math.max(0, ...consumers.map((consumer) => consumer.lag_ms));
  const figures = [
    ["Rides, by SQL", count(sample.recount?.ride_count)],
    ["Distance, by SQL", metres(sample.recount?.distance_mm)],
    ["Rides a second", rough(sample.rides_per_s)],
    ["Head of the log", count(sample.log?.head)],
    ["Published", count(sample.stream?.last_offset), sample.stream ? `${count(sample.stream.entry_count)} entries kept` : ""],
    ["Longest lag", sample.log ? `${count(lag)} ms` : "–"],
    ["Who leads", led],
    ["Duplicates skipped", sum("duplicate_count")],
    ["Refused by Redis", refused],
    ["Records healed", sum("healed_count")],
    ["Crashes survived", sum("crash_count")],
    ["Dead letters", sum("dead_letter_count")],
  ];
  const list = byId("figures");
  figures.forEach(([name, value, note = ""], index) => {
    let box = list.children[index];
    if (!box) {
      box = list.appendChild(make("div", null));
      box.append(make("dt", name), make("dd", null));
      box.lastChild.append(make("span", null), make("small", null));
    }
    write(box.lastChild.firstChild, value);
    write(box.lastChild.lastChild, note ? ` ${note}` : "");
  });
}

function showConsumers({ log, recount }) {
  const rows = byId("consumer-rows");
  const names = log.consumers.map((consumer) => consumer.name);
  if (names.join("\n") !== [...rows.children].map((row) => row.dataset.name).join("\n")) {
    rows.replaceChildren(...names.map(consumerRow));
  }
  log.consumers.forEach((consumer, index) => {
    const [swatchAndName, total, ...cells] = rows.children[index].children;
    swatchAndName.firstChild.style.borderColor = plots.colourOf(consumer.name);
    write(total, metres(consumer.total?.distance_mm));
    // Compared where both are of one head; a total on its way is neither right nor wrong.
    const comparable = consumer.total && recount?.is_complete && recount.head === consumer.last_offset;
    const agrees = comparable && consumer.total.distance_mm === recount.distance_mm && consumer.total.ride_count === recount.ride_count;
    total.className = comparable ? (agrees ? "agrees" : "differs") : "";
    total.title = comparable ? (agrees ? "equals SQL's own sum" : "is not SQL's own sum") : "";
    const figures = [
      count(consumer.total?.ride_count), count(consumer.last_offset), count(consumer.lag_records), count(consumer.lag_ms),
      count(consumer.duplicate_count), count(consumer.healed_count), count(consumer.rejected_count), count(consumer.crash_count),
      count(consumer.dead_letter_count),
    ];
    figures.forEach((figure, place) => write(cells[place], figure));
  });
}

function consumerRow(name) {
  const row = make("tr", null, { "data-name": name });
  const head = make("th", null, { scope: "row" });
  head.append(make("span", null, { class: "swatch", "aria-hidden": "true" }), name);
  row.append(head, ...Array.from({ length: 10 }, () => make("td", "")));
  const cell = row.appendChild(make("td", null, { class: "fault" }));
  cell.hidden = token === null;
  const button = cell.appendChild(make("button", "Crash", { type: "button", "aria-label": `Crash ${name}` }));
  button.addEventListener("click", () => order({ kind: "crash", consumer: name }));
  return row;
}

function showLegend(consumers) {
  const names = ["head of the log; SQL’s sum", ...consumers.map((consumer) => consumer.name)];
  const legend = byId("legend");
  names.forEach((name, index) => {
    const item = legend.children[index] ?? legend.appendChild(make("li", null));
    if (!item.firstChild) item.append(make("span", null, { class: "swatch", "aria-hidden": "true" }), make("span", null));
    item.firstChild.classList.toggle("dashed", index === 0);
    item.firstChild.style.borderColor = index === 0 ? "var(--head)" : plots.colourOf(name);
    write(item.lastChild, name);
  });
  while (legend.children.length > names.length) legend.lastChild.remove();
}

function showProcesses({ at_ms, postgres, redis, processes }) {
  const server = (name, { is_up, answer_ms }) => ({
    name, state: is_up ? "up" : "down", note: is_up ? `answers in ${answer_ms.toFixed(1)} ms` : "does not answer",
  });
  const items = [server("PostgreSQL", postgres), server("Redis", redis), ...processes.map((process) => processItem(process, at_ms))];
  const list = byId("processes");
  items.forEach(({ name, state, note }, index) => {
    const item = list.children[index] ?? list.appendChild(make("li", null));
    if (!item.firstChild) item.append(make("span", null), " ", make("small", null));
    item.dataset.state = state;
    write(item.firstChild, name);
    write(item.lastChild, note);
  });
  while (list.children.length > items.length) list.lastChild.remove();
}

function processItem({ name, is_ready, waits_for, started_at_s, is_leader }, atMs) {
  if (is_ready === null) return { name, state: "down", note: "does not answer" };
  const seen = starts.get(name) ?? { started_at_s, restartCount: 0 };
  if (started_at_s !== null && started_at_s !== seen.started_at_s) {
    seen.restartCount += 1;
    seen.started_at_s = started_at_s;
  }
  starts.set(name, seen);
  const notes = [is_ready ? "ready" : `not ready: ${waits_for.join(", ")}`];
  if (is_leader) notes.push("leads");
  if (is_leader === false) notes.push("stands by");
  if (started_at_s !== null) notes.push(`up for ${span(atMs - started_at_s * 1000)}`);
  if (seen.restartCount) notes.push(`restarted ${seen.restartCount} ×`);
  return { name, state: is_ready ? "up" : "late", note: notes.join(", ") };
}

// ---------------------------------------------------------------------------------------------------------------- buttons

async function askForToken() {
  const answer = await fetch("/faults").then((response) => response.json()).catch(() => ({ token: null }));
  token = answer.token;
  byId("faults").hidden = token === null;
  for (const cell of document.querySelectorAll(".fault")) cell.hidden = token === null;
}

async function order(what) {
  if (token === null) await askForToken();
  const headers = { "content-type": "application/json", "x-fault-token": token };
  const told = await fetch("/faults", { method: "POST", headers, body: JSON.stringify(what) })
    .then((response) => response.json())
    .catch(() => ({ error: "the server does not answer" }));
  byId("fault-outcome").textContent = `${new Date().toLocaleTimeString("en-GB")}: ${told.done ?? told.error}`;
}

for (const button of document.querySelectorAll("[data-fault]")) {
  button.addEventListener("click", () => order({ kind: button.dataset.fault }));
}
for (const button of document.querySelectorAll("[data-minutes]")) {
  button.addEventListener("click", () => {
    for (const other of document.querySelectorAll("[data-minutes]")) other.setAttribute("aria-pressed", String(other === button));
    plots.show(Number(button.dataset.minutes));
  });
}
listen();
