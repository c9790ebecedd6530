// The wallets: whether the money adds up, how they are used, and one wallet that the reader has chosen.
//
// Ids and reasons come from clients. They are written as text, never as HTML.

import { byId, make, mark, write } from "/dom.js";
import { showTiles } from "/figures.js";
import { agreement, clock, count, money, moneyVerdict, rough, wordsOfEvent } from "/words.js";

/** A KSUID: 27 digits of base 62. The server knows the largest, too. */
const WALLET_ID = /^[0-9A-Za-z]{27}$/;

let chosen = null; // the id of the wallet that is shown
let events = null; // the server sends it with each sample

// ---------------------------------------------------------------------------------------------------------------- all wallets

/** Shows the wallets of a sample. `log` is the last known state of the log. */
export function showWallets(sample, log) {
  const { wallets } = sample;
  byId("wallets-problem").hidden = wallets.problem === null;
  const age = wallets.at_ms ? ` These figures are from ${clock(wallets.at_ms)}.` : "";
  write(byId("wallets-problem"), wallets.problem === null ? "" : wallets.problem + age);
  const { mark: sign, state, text, why } = moneyVerdict(wallets.money, wallets.money_problem, sample.at_ms);
  mark(byId("money"), "data-state", state);
  write(byId("money-mark"), sign);
  write(byId("money-text"), text);
  write(byId("money-why"), why);
  showTiles(byId("wallet-figures"), tilesOf(wallets, log));
  showNewest(wallets.newest);
}

function tilesOf({ money: counted, accepted_per_s, rejected_per_s, told, model }, log) {
  const projector = log?.consumers.find((consumer) => consumer.fold === "wallets");
  const { redis_reads_per_s: redis, postgres_reads_per_s: postgres } = told;
  return [
    ["Wallets", count(counted?.wallet_count), counted ? `${count(counted.accepted_count + counted.rejected_count)} events` : ""],
    ["Sum of balances", counted ? money(counted.balances) : "–"],
    ["Accepted per second", rough(accepted_per_s), `${rough(rejected_per_s)} rejected`],
    ["Redis reads per second", rough(redis), redis === null ? "no api is watched" : `${rough(postgres)} from Postgres`],
    ["Projector’s lag", projector ? `${count(projector.lag_ms)} ms` : "–",
      projector ? `${count(projector.lag_records)} records` : "no consumer folds wallets"],
    ["Read model", ...wordsOfModel(model, told.is_rebuilding)],
  ];
}

function wordsOfModel({ state, epoch, offset }, isRebuilding) {
  if (state === "unknown") return ["–", "Redis does not answer"];
  if (state === "unmarked") return [isRebuilding ? "rebuilding" : "none", "reads take Postgres"];
  return [isRebuilding ? "rebuilding" : "valid", `epoch ${epoch.slice(-8)}, offset ${count(offset)}`];
}

/** The list does not change while the reader points at it or is inside of it: a button must not move away. */
function showNewest(newest) {
  const list = byId("newest-wallets");
  byId("no-wallets").hidden = newest.length > 0;
  const canHover = matchMedia("(hover: hover)").matches;
  if (list.matches(":focus-within") || canHover && list.matches(":hover")) return;
  newest.forEach((event, index) => showEvent(list.children[index] ?? list.appendChild(newestItem()), event));
  while (list.children.length > newest.length) list.lastChild.remove();
}

function newestItem() {
  const item = eventItem();
  const button = make("button", "", { type: "button", title: "Show this wallet" });
  button.addEventListener("click", () => choose(button.textContent));
  item.firstChild.after(" ", button);
  return item;
}

function eventItem() {
  const item = make("li", null);
  item.append(make("time", ""), " ", make("span", ""));
  return item;
}

function showEvent(item, event) {
  const time = item.firstChild;
  write(time, clock(event.at_ms));
  mark(time, "datetime", new Date(event.at_ms).toISOString());
  const button = item.querySelector("button");
  if (button) write(button, event.wallet_id);
  mark(item, "data-accepted", event.accepted ? "yes" : "no");
  write(item.lastChild, wordsOfEvent(event));
}

// ---------------------------------------------------------------------------------------------------------------- one wallet

/** Shows a wallet, and follows it from now on. */
function choose(text) {
  const id = text.trim();
  events?.close();
  [chosen, events] = [null, null];
  byId("wallet").hidden = true;
  byId("wallet-id").value = id;
  if (!WALLET_ID.test(id)) {
    write(byId("wallet-message"), id === "" ? "" : "This is no wallet’s id: it has 27 characters, each of 0-9, A-Z and a-z.");
    return;
  }
  write(byId("wallet-message"), "Reading …");
  chosen = id;
  follow(id);
}

function follow(id) {
  events = new EventSource(`/wallets/${id}`);
  events.addEventListener("wallet", (event) => showWallet(id, JSON.parse(event.data)));
  events.addEventListener("error", ({ target }) => {
    // The browser connects again by itself, unless the server refused.
    if (target.readyState !== EventSource.CLOSED) return;
    write(byId("wallet-message"), "The page’s server refuses to read this wallet. The page tries again.");
    setTimeout(() => { if (target === events && chosen === id) follow(id); }, 5000);
  });
}

function showWallet(id, wallet) {
  if (id !== chosen) return;
  write(byId("wallet-message"), "");
  byId("wallet").hidden = false;
  write(byId("wallet-title"), id);
  const { state, text } = agreement(wallet);
  mark(byId("wallet-agreement"), "data-state", state);
  write(byId("wallet-agreement"), text);
  if (wallet.postgres === null) return;
  const { balance, version, events } = wallet.postgres;
  write(byId("wallet-balance"), money(balance));
  write(byId("wallet-version"), `version ${count(version)}`);
  byId("no-events").hidden = events.length > 0;
  const list = byId("wallet-events");
  events.forEach((event, index) => showEvent(list.children[index] ?? list.appendChild(eventItem()), event));
  while (list.children.length > events.length) list.lastChild.remove();
}

byId("wallet-form").addEventListener("submit", (event) => {
  event.preventDefault();
  choose(byId("wallet-id").value);
});
