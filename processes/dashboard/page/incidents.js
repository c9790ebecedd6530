// The list of recent events: crashes, restarts, outages and so on, the newest first.

import { byId, make } from "/dom.js";
import { clock } from "/words.js";

/** The server keeps as many. */
const INCIDENT_COUNT_MAX = 50;

/** By id, the oldest first. After a restart of the server, this page keeps the older incidents that it knows. */
let known = new Map();

/** Adds incidents, the oldest first. A newer version of one replaces the older version. */
export function addIncidents(incidents) {
  for (const incident of incidents) {
    known.delete(incident.id);
    known.set(incident.id, incident);
  }
  const newest = [...known].sort(([, one], [, other]) => one.at_ms - other.at_ms).slice(-INCIDENT_COUNT_MAX);
  known = new Map(newest);
  byId("no-incidents").hidden = newest.length > 0;
  byId("incidents").replaceChildren(...newest.reverse().map(([, incident]) => listItem(incident)));
}

function listItem({ first_at_ms, at_ms, text }) {
  const [first, last] = [clock(first_at_ms), clock(at_ms)];
  const item = make("li", null);
  const time = make("time", first === last ? last : `${first} – ${last}`, { datetime: new Date(at_ms).toISOString() });
  item.append(time, " ", make("span", text));
  return item;
}
