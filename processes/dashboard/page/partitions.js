// The partitions of a log that has several: how far each is, who leads it, and whether its stream answers.

import { byId, make, mark, write } from "/dom.js";
import { count } from "/words.js";

/** Shows the partitions of the last known log, and their streams as they are now. `order` is called with the order of a button,
 *  `areButtonsShown` tells whether there are any. */
export function showPartitions({ streams, processes }, log, areButtonsShown, order) {
  const partitions = log?.partitions ?? [];
  byId("partitions-section").hidden = partitions.length < 2;
  write(byId("wipe"), partitions.length < 2 ? "Wipe the stream" : "Wipe all streams");
  if (partitions.length < 2) return;
  const list = byId("partitions");
  const numbers = partitions.map((partition) => String(partition.partition));
  if (numbers.join(" ") !== [...list.children].map((item) => item.dataset.partition).join(" ")) {
    list.replaceChildren(...numbers.map((number) => itemOf(number, order)));
  }
  partitions.forEach((partition, index) => {
    const stream = streams.find((stream) => stream.partition === partition.partition);
    const leader = processes.find((process) => process.leads.includes(partition.partition))?.name;
    showPartition(list.children[index], partition, stream, leader, areButtonsShown);
  });
}

function itemOf(number, order) {
  const item = make("li", null, { "data-partition": number });
  const title = make("span", null, { class: "name" });
  title.append(`${number} `, make("span", "", { class: "word" }));
  const button = make("button", "Wipe", { type: "button", "aria-label": `Wipe the stream of partition ${number}` });
  button.addEventListener("click", () => order({ kind: "wipe", partition: Number(number) }));
  item.append(title, button, make("small", ""), make("small", ""));
  return item;
}

function showPartition(item, partition, stream, leader, isButtonShown) {
  const [title, button, place, lead] = item.children;
  const [state, word] = stateOf(partition, stream);
  mark(item, "data-state", state);
  write(title.lastChild, word);
  const published = stream?.state ? `published ${count(stream.state.last_offset)}` : "stream does not answer";
  write(place, `head ${count(partition.head)}, ${published}`);
  const led = partition.is_led ? `led by ${leader ?? "a streamer that is not watched"}` : "no leader";
  write(lead, partition.slowest === null ? led : `${led}; ${partition.slowest} lags most`);
  button.hidden = !isButtonShown;
}

/** A state and a mark in words: the worst that is known of a partition. */
function stateOf({ differs, is_led, lag_records }, stream) {
  if (differs) return ["down", "✗ totals differ"];
  if (stream && !stream.state) return ["down", "✗ no stream"];
  if (!is_led) return ["down", "✗ no leader"];
  return lag_records > 0 ? ["late", `… lag ${count(lag_records)}`] : ["up", "✓ lag 0"];
}
