// The consumers: a row for each on a wide screen, and a card for each on a narrow one. Both are the same table.

import { byId, make, mark, write } from "/dom.js";
import { sampleOf } from "/lines.js";
import { count, metres } from "/words.js";

const COLUMNS = [...document.querySelectorAll("#consumers thead th")].map((column) => column.textContent);

/** Shows the consumers of a log. `order` is called with the order of a button, `areButtonsShown` tells whether there are any. */
export function showConsumers(log, lines, areButtonsShown, order) {
  const rows = byId("consumer-rows");
  const names = log.consumers.map((consumer) => consumer.name);
  if (names.join("\n") !== [...rows.children].map((row) => row.dataset.name).join("\n")) {
    rows.replaceChildren(...names.map((name) => consumerRow(name, areButtonsShown, order)));
  }
  log.consumers.forEach((consumer, index) => {
    const [name, total, ...cells] = rows.children[index].children;
    const line = lines.find((line) => line.label === consumer.name);
    if (line && name.dataset.line !== JSON.stringify(line)) {
      name.dataset.line = JSON.stringify(line);
      name.firstChild.replaceWith(sampleOf(line));
    }
    write(total, metres(consumer.total?.distance_mm));
    markTotal(total, consumer);
    const figures = [
      consumer.total?.ride_count, consumer.last_offset, consumer.lag_records, consumer.lag_ms, consumer.duplicate_count,
      consumer.healed_count, consumer.rejected_count, consumer.crash_count, consumer.dead_letter_count,
    ];
    figures.forEach((figure, place) => write(cells[place], count(figure)));
  });
}

/** Marks a total that the server has compared with the recount. Otherwise it is neither right nor wrong. */
function markTotal(cell, { agrees }) {
  if (agrees === null) {
    mark(cell, "data-agrees", null);
    mark(cell, "title", null);
    return;
  }
  mark(cell, "data-agrees", agrees ? "yes" : "no");
  mark(cell, "title", agrees ? "equals SQL’s own sum" : "does not equal SQL’s own sum");
}

function consumerRow(name, areButtonsShown, order) {
  // On a narrow screen a browser takes the roles away with the layout of a table, so they are given here.
  const row = make("tr", null, { "data-name": name, role: "row" });
  const head = make("th", null, { scope: "row", role: "rowheader", title: name });
  head.append(make("span", null), make("span", name));
  const cells = COLUMNS.slice(1, -1).map((column) => make("td", "", { role: "cell", "data-column": column }));
  const fault = make("td", null, { class: "fault", role: "cell" });
  fault.hidden = !areButtonsShown;
  const button = fault.appendChild(make("button", "Crash", { type: "button", "aria-label": `Crash ${name}` }));
  button.addEventListener("click", () => order({ kind: "crash", consumer: name }));
  row.append(head, ...cells, fault);
  return row;
}
