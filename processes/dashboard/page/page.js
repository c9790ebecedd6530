// Receives samples from the server, shows them, and shows how old they are.

import { showConsumers } from "/consumers.js";
import { showContainer } from "/container.js";
import { byId, make, write } from "/dom.js";
import { showFigures } from "/figures.js";
import { addIncidents } from "/incidents.js";
import { referenceLine, sampleOf } from "/lines.js";
import { showPartitions } from "/partitions.js";
import { Plots } from "/plots.js";
import { showProcesses } from "/processes.js";
import { showWallets } from "/wallets.js";
import { ageOfFigures, clock, outages, span, verdict } from "/words.js";

/** Samples come twice a second. If none has come for this long, the page is stale. */
const STALE_MS = 4000;

const plots = new Plots();
let last = null; // the latest sample
let heardAt = 0; // when it came, on this machine's clock
let token = null; // the server wants to see it with an order

/** The last known figures of each server, and the times of their samples: they stay on the page through an outage. */
let known = { log: null, log_at_ms: 0, stream: null, stream_at_ms: 0 };

// ---------------------------------------------------------------------------------------------------------------- events

function listen() {
  const events = new EventSource("/events");
  events.addEventListener("history", (event) => plots.restart(JSON.parse(event.data)));
  events.addEventListener("incidents", (event) => addIncidents(JSON.parse(event.data)));
  events.addEventListener("known", (event) => learn(JSON.parse(event.data)));
  events.addEventListener("sample", (event) => {
    last = JSON.parse(event.data);
    heardAt = Date.now();
    show(last);
    showLink();
  });
  events.addEventListener("open", askForToken);
  events.addEventListener("error", () => {
    // The browser connects again by itself, unless the server refused.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
    // A restarted server has another token.
    token = null;
    setLink("lost", "connection lost: the browser tries again");
  });
}

/** Keeps newer figures of a server, if there are any. */
function learn({ log, log_at_ms, stream, stream_at_ms }) {
  if (log && log_at_ms >= known.log_at_ms) known = { ...known, log, log_at_ms };
  if (stream && stream_at_ms >= known.stream_at_ms) known = { ...known, stream, stream_at_ms };
}

function setLink(state, text) {
  document.body.dataset.link = state;
  write(byId("link-text"), text);
}

function showLink() {
  const age = Date.now() - heardAt;
  if (!last || document.body.dataset.link === "lost" && age > 1000) return;
  if (age > STALE_MS) setLink("stale", `stale: no sample for ${span(age)}`);
  else setLink("live", "live");
}
setInterval(showLink, 500);

// ---------------------------------------------------------------------------------------------------------------- figures

function show(sample) {
  // A clock that was put back makes the known figures seem to be of the future.
  if (known.log_at_ms > sample.at_ms) known.log_at_ms = known.stream_at_ms = 0;
  learn({ log: sample.log, log_at_ms: sample.at_ms, stream: sample.stream, stream_at_ms: sample.at_ms });
  const { mark, text, why } = verdict(sample);
  document.body.dataset.verdict = sample.verdict;
  write(byId("verdict-mark"), mark);
  write(byId("verdict-text"), text);
  write(byId("verdict-why"), why);
  write(byId("outages"), outages(sample).join(" "));
  showProcesses(sample);
  const age = ageOfFigures(sample, known.log_at_ms);
  byId("age").hidden = age === "";
  write(byId("age"), age);
  plots.add(pointOf(sample));
  showFigures(sample, known);
  if (known.log) showConsumers(known.log, plots.lines, token !== null, order);
  showPartitions(sample, known.log, token !== null, order);
  showWallets(sample, known.log);
  showContainer(sample, token !== null, order);
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

plots.whenLinesChange = () => {
  const item = (line) => {
    const item = make("li", null);
    item.append(sampleOf(line), make("span", line.label));
    return item;
  };
  byId("legend").replaceChildren(...[referenceLine("head of the log, SQL’s sum"), ...plots.lines].map(item));
};

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
  byId("fault-outcome").textContent = `${clock(Date.now())}: ${told.done ?? told.error}`;
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
