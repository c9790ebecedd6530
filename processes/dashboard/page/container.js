// The container: how many units it accepts and settles, how many wait, and each destination with its breaker.

import { byId, make, mark, write } from "/dom.js";
import { showTiles } from "/figures.js";
import { clock, count, rough, span } from "/words.js";

/** Shows the container of a sample. `order` is called with the order of a button, `areButtonsShown` tells whether there are any. */
export function showContainer({ container }, areButtonsShown, order) {
  byId("container-problem").hidden = container.problem === null;
  const age = container.at_ms === null ? "" : ` These figures are from ${clock(container.at_ms)}.`;
  write(byId("container-problem"), container.problem === null ? "" : container.problem + age);
  showTiles(byId("container-figures"), tilesOf(container));
  const list = byId("destinations");
  byId("destinations-title").hidden = container.destinations.length === 0;
  const names = container.destinations.map((destination) => destination.name);
  if (names.join("\n") !== [...list.children].map((item) => item.dataset.name).join("\n")) {
    list.replaceChildren(...names.map((name) => itemOf(name, order)));
  }
  container.destinations.forEach((destination, index) => showDestination(list.children[index], destination, areButtonsShown));
}

function tilesOf({ at_ms, accepted_per_s, committed_per_s, rejected_per_s, failed_per_s, units, oldest_s, spool_files, spool_free_ratio }) {
  const isKnown = at_ms !== null;
  const number = (state) => (isKnown ? units[state] ?? 0 : null);
  const waiting = isKnown ? number("queued") + number("fail_queued") : null;
  const isOpen = isKnown && waiting + number("fanned_out") + number("rolling_back") > 0;
  return [
    ["Units accepted per second", rough(accepted_per_s)],
    ["Committed per second", rough(committed_per_s), `${rough(rejected_per_s)} rejected, ${rough(failed_per_s)} to be retried`],
    ["Units waiting", count(waiting), isOpen ? `the oldest for ${span(oldest_s * 1000)}` : ""],
    ["Units in work", count(number("fanned_out")), isKnown ? `${count(number("rolling_back"))} rolled back` : ""],
    ["Dead units", count(number("dead")), number("dead") ? "container units list" : ""],
    ["Files in the spool", isKnown ? count(spool_files) : "–", isKnown ? `${Math.floor(spool_free_ratio * 100)} % of its disk is free` : ""],
  ];
}

function itemOf(name, order) {
  const item = make("li", null, { "data-name": name });
  const title = make("span", null, { class: "name" });
  title.append(`${name} `, make("span", "", { class: "word" }));
  const button = make("button", "Fail", { type: "button", "aria-label": `Make ${name} fail` });
  button.addEventListener("click", () => order({ kind: "fail", destination: name }));
  item.append(title, button, make("small", ""));
  return item;
}

function showDestination(item, { is_open, waiting, stored_per_s, failed_per_s }, isButtonShown) {
  const [title, button, note] = item.children;
  mark(item, "data-state", is_open ? "open" : "closed");
  write(title.lastChild, is_open ? "✗ breaker open" : "✓ breaker closed");
  const waits = waiting === 1 ? "1 unit waits" : `${count(waiting)} units wait`;
  write(note, `${waits}; ${rough(stored_per_s)} stored and ${rough(failed_per_s)} failed per second`);
  button.hidden = !isButtonShown;
}
