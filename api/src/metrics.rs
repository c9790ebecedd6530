//! The metrics of the api.

use monitor::{counter, declare_counter, describe_histogram, histogram};
use wallet::write::Verdict;

use crate::wallet_model::Source;

/// Describes every metric.
pub(crate) fn describe() {
    web::describe_metrics();
    booking::describe_metrics();
    declare_counter("rocket_rides_rides_written_total", "Guests' rides that were written and confirmed", &[]);
    describe_histogram!("rocket_rides_group_size", "Rides that were committed together");
    let commands = "Commands for wallets, by their result";
    for result in ["accepted", "rejected", "replayed", "key_mismatch"] {
        declare_counter("rocket_rides_wallet_commands_total", commands, &[("result", result)]);
    }
    describe_histogram!("rocket_rides_wallet_group_size", "Commands that were committed together");
    let held = "Commands that met a wallet which another session held";
    declare_counter("rocket_rides_wallet_held_total", held, &[]);
    let busy = "Commands that were refused because another session held a wallet for too long";
    declare_counter("rocket_rides_wallet_busy_total", busy, &[]);
    let looked_up = "Groups of commands whose COMMIT was not answered, by what the api found out";
    for result in ["written", "not_written", "unknown"] {
        declare_counter("rocket_rides_wallet_commits_looked_up_total", looked_up, &[("result", result)]);
    }
    for source in [Source::Redis, Source::Postgres] {
        let reads = "Wallets that were read, by source";
        declare_counter("rocket_rides_wallet_reads_total", reads, &[("source", source.name())]);
    }
    declare_counter("rocket_rides_idempotent_replays_total", "Bookings that were answered as they were before", &[]);
    declare_counter(
        "rocket_rides_idempotency_conflicts_total",
        "Bookings whose key is in use or was used otherwise",
        &[],
    );
}

/// Counts the rides of a group that was committed.
pub(crate) fn written(ride_count: usize) {
    counter!("rocket_rides_rides_written_total").increment(ride_count as u64);
    histogram!("rocket_rides_group_size").record(ride_count as f64);
}

/// Counts the commands of a group that was committed.
pub(crate) fn commands_written(verdicts: &[Verdict]) {
    let mut written_count = 0;
    for verdict in verdicts {
        let result = match verdict {
            Verdict::Held(_) => continue,
            Verdict::KeyMismatch => "key_mismatch",
            Verdict::Done(outcome) if outcome.is_replayed => "replayed",
            Verdict::Done(outcome) => {
                written_count += 1;
                if outcome.rejection.is_none() { "accepted" } else { "rejected" }
            }
        };
        counter!("rocket_rides_wallet_commands_total", "result" => result).increment(1);
    }
    if written_count > 0 {
        histogram!("rocket_rides_wallet_group_size").record(f64::from(written_count));
    }
}

/// Counts a command that met a held wallet.
pub(crate) fn wallet_held() {
    counter!("rocket_rides_wallet_held_total").increment(1);
}

/// Counts a command that is refused because of a held wallet.
pub(crate) fn wallet_busy() {
    counter!("rocket_rides_wallet_busy_total").increment(1);
}

/// Counts a group whose COMMIT was not answered.
pub(crate) fn commit_looked_up(result: &'static str) {
    counter!("rocket_rides_wallet_commits_looked_up_total", "result" => result).increment(1);
}

/// Counts a read of a wallet.
pub(crate) fn wallet_read(source: Source) {
    counter!("rocket_rides_wallet_reads_total", "source" => source.name()).increment(1);
}
