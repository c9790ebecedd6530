// Figures and verdicts in words. No part of the page is touched here.

const thousands = (digits) => digits.replace(/\B(?=(\d{3})+$)/g, ",");

/** 1234567 → "1,234,567"; what is not known → "–". */
export const count = (number) => (number === null || number === undefined ? "–" : thousands(String(Math.round(number))));

/** Millimetres as text, exact whatever their size: "4500600" → "4,500.600 m". */
export const metres = (mm) => {
  if (mm === null || mm === undefined) return "–";
  const digits = mm.padStart(4, "0");
  return `${thousands(digits.slice(0, -3))}.${digits.slice(-3)} m`;
};

/** 0.52 → "0.5"; 1234.5 → "1,235". */
export const rough = (number) => {
  if (number === null || number === undefined) return "–";
  return number < 10 ? number.toFixed(1) : count(number);
};

/** Milliseconds as people say them: "0.4 s", "3 min". */
export const span = (ms) => {
  if (ms < 10_000) return `${(Math.max(0, ms) / 1000).toFixed(1)} s`;
  if (ms < 120_000) return `${Math.round(ms / 1000)} s`;
  if (ms < 7_200_000) return `${Math.round(ms / 60_000)} min`;
  return `${Math.round(ms / 3_600_000)} h`;
};

const list = (names) => (names.length > 3 ? `${names.slice(0, 3).join(", ")} and ${names.length - 3} more` : names.join(", "));

/** What a sample's verdict means: a mark, a short text that changes only with the verdict, and the reason. */
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
          `of ${count(recount.ride_count)} rides, which is what SQL counts (recounted ${span(sample.at_ms - recount.at_ms)} ago).`,
      };
    case "at_head":
      return {
        mark: "…",
        text: "At the head",
        why: sample.log.is_cut_off
          ? "There are more consumers than this page shows: audit compares them all."
          : "Everything is folded. The rides are being recounted to compare.",
      };
    case "behind": {
      const late = consumers.filter((consumer) => consumer.lag_records > 0).map((consumer) => consumer.name);
      const staged = sample.log.is_anything_staged ? "There are records that have no offset yet." : "";
      const leader = sample.log.is_led ? "" : " No streamer leads.";
      return { mark: "…", text: "Catching up", why: (late.length ? `${list(late)} still fold.` : staged) + leader };
    }
    case "differs": {
      const letters = consumers.reduce((sum, consumer) => sum + consumer.dead_letter_count, 0);
      const others = folding
        .filter((consumer) => consumer.total.distance_mm !== recount.distance_mm || consumer.total.ride_count !== recount.ride_count)
        .map((consumer) => consumer.name);
      const who = others.length ? `${list(others)}: not what SQL counts.` : "The consumers folded different rides.";
      const hint = letters ? ` There are ${letters} dead letters: dead-letters list shows them.` : " audit tells more.";
      return { mark: "✗", text: "A total differs", why: who + hint };
    }
    case "nobody":
      return { mark: "…", text: "No consumer yet", why: "None that folds the total distance is registered." };
    default:
      return { mark: "?", text: "Postgres does not answer", why: "The figures below are the last ones that were known." };
  }
}
