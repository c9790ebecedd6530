// Figures, verdicts and outages in words. This file does not touch the page.

const thousands = (digits) => digits.replace(/\B(?=(\d{3})+$)/g, ",");

/** 1234567 → "1,234,567"; an unknown number → "–". */
export const count = (number) => (number === null || number === undefined ? "–" : thousands(String(Math.round(number))));

/** Millimetres as text, exact for every size: "4500600" → "4,500.600 m". */
export const metres = (mm) => {
  if (mm === null || mm === undefined) return "–";
  const digits = mm.padStart(4, "0");
  return `${thousands(digits.slice(0, -3))}.${digits.slice(-3)} m`;
};

/** A decimal as text, exact for every size: "-1234.50" → "-1,234.50". */
export const money = (decimal) => {
  const [whole, cents] = decimal.split(".");
  return `${thousands(whole)}.${cents}`;
};

/** 0.52 → "0.5"; 1234.5 → "1,235". */
export const rough = (number) => {
  if (number === null || number === undefined) return "–";
  return number < 10 ? number.toFixed(1) : count(number);
};

/** Milliseconds in a readable unit: "0.4 s", "3 min". */
export const span = (ms) => {
  if (ms < 10_000) return `${(Math.max(0, ms) / 1000).toFixed(1)} s`;
  if (ms < 120_000) return `${Math.round(ms / 1000)} s`;
  if (ms < 7_200_000) return `${Math.round(ms / 60_000)} min`;
  return `${Math.round(ms / 3_600_000)} h`;
};

/** The time of day: "14:03:09". */
export const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");

/** "a", "a and b", "a, b, c and 2 more". */
const list = (names) => {
  if (names.length > 3) return `${names.slice(0, 3).join(", ")} and ${names.length - 3} more`;
  return names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : names.join("");
};

/** "partition 3", "partitions 0, 3 and 5". */
const partitions = (numbers) => `partition${numbers.length > 1 ? "s" : ""} ${list(numbers.map(String))}`;

/** The verdict of a sample: a mark, a short text that changes only with the verdict, and the reason. */
export function verdict(sample) {
  const consumers = sample.log?.consumers ?? [];
  const folding = consumers.filter((consumer) => consumer.total);
  const recount = sample.recount;
  switch (sample.verdict) {
    case "converged":
      return {
        mark: "✓",
        text: "Converged",
        why: `${folding.length === 1 ? "The consumer has" : `All ${folding.length} consumers have`} ${metres(recount.distance_mm)} ` +
          `of ${count(recount.ride_count)} rides. SQL counts the same (${span(sample.at_ms - recount.at_ms)} ago).`,
      };
    case "at_head":
      return {
        mark: "…",
        text: "At the head",
        why: whyNotCompared(sample.log),
      };
    case "behind": {
      const late = consumers.filter((consumer) => consumer.lag_records > 0).map((consumer) => consumer.name);
      const partial = consumers.find((consumer) => consumer.missing_partitions.length > 0);
      const missing = partial ? `${partial.name} is not registered in ${partitions(partial.missing_partitions)}.` : "";
      const staged = sample.log.is_anything_staged ? "There are records that have no offset yet." : "";
      const folds = late.length === 1 ? "has records left to fold" : "have records left to fold";
      return { mark: "…", text: "Catching up", why: late.length ? `${list(late)} ${folds}.` : staged || missing };
    }
    case "differs":
      return { mark: "✗", text: "A total differs", why: difference(sample.log, folding, recount) };
    case "nobody":
      return { mark: "…", text: "No consumer yet", why: "No consumer that folds the total distance is registered." };
    default:
      return {
        mark: "?",
        text: "Postgres does not answer",
        why: "Until it does, no ride is accepted and consumers wait. Nothing that was committed is lost.",
      };
  }
}

function whyNotCompared(log) {
  if (!log.is_whole) return "This page shows a part of the log, so no total is compared with SQL’s.";
  if (log.is_cut_off) return "There are more consumers than this page shows. The program audit compares all of them.";
  return "Every consumer has folded every record. SQL is counting the rides, for comparison.";
}

function difference(log, folding, recount) {
  const letters = log.consumers.reduce((sum, consumer) => sum + consumer.dead_letter_count, 0);
  const others = folding
    .filter((consumer) => consumer.total.distance_mm !== recount.distance_mm || consumer.total.ride_count !== recount.ride_count)
    .map((consumer) => consumer.name);
  const different = log.partitions.filter((partition) => partition.differs).map((partition) => partition.partition);
  const where = log.partitions.length > 1 && different.length ? ` in ${partitions(different)}` : "";
  const who = others.length
    ? `SQL counts another total than ${list(others)}.`
    : `The consumers folded different rides${where}.`;
  const hint = letters
    ? ` Dead letters: ${count(letters)}. The command “dead-letters list” shows them.`
    : " The program audit tells more.";
  return who + hint;
}

/** Sentences about everything that does not answer, except Postgres: that is a verdict of its own. */
export function outages({ postgres, redis, log, streams, processes }) {
  const away = processes.filter((process) => process.is_ready === null).map((process) => process.name);
  const sentences = [];
  if (!redis.is_up) sentences.push(`Redis does not answer${postgres.is_up ? ": consumers read from Postgres" : " either"}.`);
  const silent = streams.filter((stream) => stream.state === null).map((stream) => stream.partition);
  if (redis.is_up && silent.length) {
    const streamsOf = silent.length > 1 ? "The streams of" : "The stream of";
    sentences.push(`${streamsOf} ${partitions(silent)} ${silent.length > 1 ? "do" : "does"} not answer: consumers read from Postgres.`);
  }
  const free = (log?.partitions ?? []).filter((partition) => !partition.is_led).map((partition) => partition.partition);
  if (free.length) {
    const where = log.partitions.length > 1 ? ` ${partitions(free)}` : "";
    sentences.push(`No streamer leads${where}: new records get no offset until one does.`);
  }
  if (away.length) sentences.push(`${list(away)} ${away.length === 1 ? "does" : "do"} not answer.`);
  return sentences;
}

/** Tells how old the figures of Postgres are; "" if they are of this sample. */
export function ageOfFigures(sample, knownAtMs) {
  if (sample.log) return "";
  if (!knownAtMs) return "No figures are known: Postgres has not answered since this page’s server started.";
  return `These are the last known figures of Postgres, from ${clock(knownAtMs)} (${span(sample.at_ms - knownAtMs)} ago).`;
}

/** Whether the balances are the money that came from the world: a mark, a state, a short text, and the figures. `problem` tells
 *  why the newest count has failed. */
export function moneyVerdict(counted, problem, atMs) {
  if (!counted && problem) return { mark: "…", state: "wait", text: "The money cannot be counted", why: problem };
  if (!counted) return { mark: "…", state: "wait", text: "The money is not counted yet", why: "" };
  const { balances, from_world, wallet_count, adds_up, at_ms } = counted;
  const age = `(${span(atMs - at_ms)} ago${problem ? "; a newer count failed" : ""})`;
  const sum = `${count(wallet_count)} ${wallet_count === 1 ? "wallet has" : "wallets have"} ${money(balances)} in all`;
  if (adds_up) {
    return { mark: "✓", state: "good", text: "The money adds up", why: `${sum}, which is accepted credits minus debits ${age}.` };
  }
  const why = `${sum}, but accepted credits minus debits are ${money(from_world)} ${age}. The program audit tells more.`;
  return { mark: "✗", state: "bad", text: "The money does not add up", why };
}

/** An event of a wallet: "credit of 5.00: balance 5.00, version 1". */
export function wordsOfEvent({ accepted, reason, action, amount, balance, version, counterparty }) {
  if (!accepted) return `✗ ${reason}`;
  const isPaid = amount.startsWith("-");
  const other = action === "transfer" ? ` ${isPaid ? "to" : "from"} ${counterparty}` : "";
  return `${action} of ${money(isPaid ? amount.slice(1) : amount)}${other}: balance ${money(balance)}, version ${count(version)}`;
}

/** Whether Redis and Postgres have the same of a wallet: a state and a sentence. */
export function agreement({ agreement, redis_version, postgres }) {
  const version = `version ${count(redis_version)}`;
  const [state, text] = {
    equal: ["good", redis_version === null
      ? "✓ Redis and Postgres agree: neither has anything of this wallet."
      : `✓ Redis and Postgres agree: both have ${version}.`],
    differs: ["bad", `✗ Redis and Postgres differ: Redis has ${version}, with another event or balance than Postgres.`],
    behind: ["wait", `Redis is behind: it has ${version}.`],
    absent: ["wait", "Redis has no document of this wallet: the next read writes it."],
    other_epoch: ["wait", "Redis has a document of another build of the read model: readers take Postgres."],
    unmarked: ["wait", "The read model has no mark: readers take Postgres."],
  }[agreement] ?? ["wait", `${postgres === null ? "Postgres" : "Redis"} does not answer, so they cannot be compared.`];
  return { state, text };
}
