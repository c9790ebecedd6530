//! The metrics and the log lines of a look.

use monitor::{counter, declare_counter, declare_gauge, gauge};
use pglog::{Partition, PartitionCount, Partitions};
use tracing::{info, warn};

use crate::cleaned::Cleaned;

/// Describes every metric, those of each partition with its label.
pub(crate) fn declare(partitions: &[Partition]) {
    declare_counter(
        "rocket_rides_requests_forgotten_total",
        "Old requests with an idempotency key that were forgotten",
        &[],
    );
    declare_counter("rocket_rides_requests_unfinished_total", "Forgotten requests that were never finished", &[]);
    for partition in partitions {
        let labels = [("partition", &*partition.to_string())];
        declare_counter("rocket_rides_records_reaped_total", "Records deleted from Postgres", &labels);
        declare_counter("rocket_rides_entries_trimmed_total", "Entries trimmed from the stream", &labels);
        declare_gauge("rocket_rides_laggards", "Consumers that do not move and hold back deletion", &labels);
    }
}

/// Counts what was not counted where it was done.
pub(crate) fn count(cleaned: &Cleaned, partitions: &[Partition]) {
    counter!("rocket_rides_requests_forgotten_total").increment(cleaned.request_count);
    counter!("rocket_rides_requests_unfinished_total").increment(cleaned.unfinished_request_count);
    for partition in partitions {
        let laggard_count = cleaned.laggards.iter().filter(|laggard| laggard.partition == *partition).count();
        gauge!("rocket_rides_laggards", "partition" => partition.to_string()).set(laggard_count as f64);
    }
}

/// Logs what was removed, and the consumers that hold back deletion. Partitions are named if the log has several, and in the
/// command if a person chose some.
pub(crate) fn log(cleaned: &Cleaned, count: PartitionCount, chosen: &Partitions) {
    if cleaned.batch_count > 0 || cleaned.trimmed_count > 0 {
        info!(
            batch_count = cleaned.batch_count,
            record_count = cleaned.record_count,
            trimmed_count = cleaned.trimmed_count,
            "removed records that every consumer has passed"
        );
    }
    if cleaned.request_count > 0 {
        info!(request_count = cleaned.request_count, "forgot old requests");
    }
    if cleaned.unfinished_request_count > 0 {
        warn!(
            unfinished_request_count = cleaned.unfinished_request_count,
            "requests were never finished: look at each in reaped_requests, the processor may have charged"
        );
    }
    // One line per consumer, because it is started and forgotten as a whole.
    for laggards in cleaned.laggards.chunk_by(|one, next| one.name == next.name) {
        warn!(
            consumer = laggards[0].name,
            partitions = (count != PartitionCount::ONE).then(|| list(laggards.iter().map(|laggard| laggard.partition))),
            lag = laggards.iter().map(|laggard| laggard.lag).sum::<i64>(),
            still_s = laggards.iter().map(|laggard| laggard.still_s).max(),
            "this consumer does not move, and nothing after it can be removed: start it, or forget it with \
             `consumer {} --unregister{}`",
            process::quoted(&laggards[0].name),
            chosen.argument()
        );
    }
}

/// Partitions with commas between them.
pub(crate) fn list(partitions: impl Iterator<Item = Partition>) -> String {
    partitions.map(|partition| partition.to_string()).collect::<Vec<_>>().join(",")
}
