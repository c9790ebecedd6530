//! The streamer's metrics: its counters, and how far the stream is behind the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use connect::PostgresArgs;
use monitor::{Health, Pulse, Unit, counter, declare_counter, declare_gauge, describe_histogram, gauge, histogram};
use pglog::{Partition, PartitionCount, Place};

use crate::fault::Fault;
use crate::publish::Published;

/// The last offset that was published in each partition, and when.
pub(crate) type LastPublished = Arc<Mutex<BTreeMap<Partition, (i64, Instant)>>>;

const UNPUBLISHED: &str = "rocket_rides_unpublished_records";

const LEADS: &str = "rocket_rides_leads";

/// Only a batch that was published within the last second is measured, so that each is measured once: Postgres is asked
/// every second.
const MEASURED_WITHIN: Duration = Duration::from_secs(1);

/// Statements that succeed only while batches can be cut and read, and change no row.
const TRIAL: [&str; 3] = [
    "-- streamer::try_cut
     INSERT INTO log_batches (partition, first_offset, record_count, snapshot, fresh_first_id, fresh_last_id, token)
     SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE false",
    "-- streamer::try_records\nSELECT FROM staged_log_records WHERE false",
    "-- streamer::try_checkpoints\nSELECT last_offset FROM checkpoints WHERE false",
];

/// Describes the metrics, and begins to measure how far the streams are behind. `pulse` beats while
/// batches can be cut.
pub(crate) fn start(health: &Health, postgres: &PostgresArgs, pulse: Pulse) -> LastPublished {
    declare_counter("rocket_rides_batches_published_total", "Batches appended to the stream", &[]);
    declare_counter("rocket_rides_records_published_total", "Records appended to the stream, each once", &[]);
    declare_counter("rocket_rides_entries_added_total", "Entries added to the stream, double-sends included", &[]);
    declare_counter("rocket_rides_entries_refused_total", "Entries that Redis refused because it had them", &[]);
    declare_counter("rocket_rides_faults_injected_total", "Double-sends on purpose", &[]);
    declare_gauge("rocket_rides_leader", "Partitions that this streamer leads; 0 while it stands by", &[]);
    declare_gauge(LEADS, "1 while this streamer leads the partition", &[("partition", "0")]);
    declare_gauge("rocket_rides_log_partitions", "Partitions of the log; 0 before the streamer has asked", &[]);
    let help = "Records that have an offset and are not in the stream yet";
    declare_gauge(UNPUBLISHED, help, &[("partition", "0")]);
    describe_histogram!("rocket_rides_publish_duration_seconds", Unit::Seconds, "How long appending a batch took");
    describe_histogram!(
        "rocket_rides_commit_to_append_seconds",
        Unit::Seconds,
        "From when a record was staged until it was in the stream; one record a second at most"
    );
    let last = LastPublished::default();
    let shared = Arc::clone(&last);
    health.ask_postgres(&postgres.database_url, pulse, move |client| {
        let last: Vec<Place> = {
            let last = shared.lock().unwrap_or_else(PoisonError::into_inner);
            let place = |(partition, (offset, at)): (&Partition, &(i64, Instant))| Place {
                partition: *partition,
                offset: *offset,
                since: at.elapsed(),
            };
            last.iter().map(place).collect()
        };
        Box::pin(async move {
            let lags = if last.is_empty() { Vec::new() } else { pglog::lags(client, &last).await? };
            for (Place { partition, since, .. }, lag) in last.into_iter().zip(lags) {
                gauge!(UNPUBLISHED, "partition" => partition.to_string()).set(lag.record_count as f64);
                if let Some(taken_s) = lag.taken_s.filter(|_| since <= MEASURED_WITHIN) {
                    histogram!("rocket_rides_commit_to_append_seconds").record(taken_s);
                }
            }
            monitor::try_statements(client, &TRIAL).await
        })
    });
    last
}

/// Counts a published page, and notes its end.
pub(crate) fn count(published: &Published, last: &LastPublished) {
    let end = (published.last_offset(), Instant::now());
    last.lock().unwrap_or_else(PoisonError::into_inner).insert(published.partition, end);
    counter!("rocket_rides_batches_published_total").increment(1);
    counter!("rocket_rides_records_published_total").increment(published.record_count as u64);
    counter!("rocket_rides_entries_added_total").increment(published.added_count as u64);
    counter!("rocket_rides_entries_refused_total").increment(published.refused_count as u64);
    counter!("rocket_rides_faults_injected_total").increment((published.fault != Fault::None).into());
    histogram!("rocket_rides_publish_duration_seconds").record(published.elapsed);
}

/// Says which partitions this streamer leads. `said` are those that it said last. It has nothing to publish in the others.
pub(crate) fn set_led(led: &BTreeSet<Partition>, said: &mut BTreeSet<Partition>, last: &LastPublished) {
    gauge!("rocket_rides_leader").set(led.len() as f64);
    for partition in led.symmetric_difference(said) {
        gauge!(LEADS, "partition" => partition.to_string()).set(f64::from(led.contains(partition)));
    }
    said.clone_from(led);
    last.lock().unwrap_or_else(PoisonError::into_inner).retain(|partition, _| {
        let is_led = led.contains(partition);
        if !is_led {
            gauge!(UNPUBLISHED, "partition" => partition.to_string()).set(0.0);
        }
        is_led
    });
}

/// Says how many partitions the log has.
pub(crate) fn set_partition_count(count: PartitionCount) {
    gauge!("rocket_rides_log_partitions").set(f64::from(count.number()));
}
