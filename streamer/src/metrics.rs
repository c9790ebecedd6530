//! The streamer's metrics: its counters, and how far the stream is behind the log.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use connect::PostgresArgs;
use monitor::{Health, Pulse, Unit, counter, declare_counter, declare_gauge, describe_histogram, gauge, histogram};
use pglog::Partition;

use crate::publish::Published;

/// The last offset that was published, and when.
pub(crate) type LastPublished = Arc<Mutex<Option<(i64, Instant)>>>;

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

/// Describes the metrics, and begins to measure how far the stream is behind. `pulse` beats while
/// batches can be cut.
pub(crate) fn start(health: &Health, postgres: &PostgresArgs, pulse: Pulse, partition: Partition) -> LastPublished {
    declare_counter("rocket_rides_batches_published_total", "Batches appended to the stream", &[]);
    declare_counter("rocket_rides_records_published_total", "Records appended to the stream, each once", &[]);
    declare_counter("rocket_rides_entries_added_total", "Entries added to the stream, double-sends included", &[]);
    declare_counter("rocket_rides_entries_refused_total", "Entries that Redis refused because it had them", &[]);
    declare_counter("rocket_rides_faults_injected_total", "Double-sends on purpose", &[]);
    declare_gauge("rocket_rides_leader", "1 on the streamer that leads, 0 on those that stand by", &[]);
    declare_gauge("rocket_rides_unpublished_records", "Records that have an offset and are not in the stream yet", &[]);
    describe_histogram!("rocket_rides_publish_duration_seconds", Unit::Seconds, "How long appending a batch took");
    describe_histogram!(
        "rocket_rides_commit_to_append_seconds",
        Unit::Seconds,
        "From when a record was staged until it was in the stream; one record a second at most"
    );
    let last = LastPublished::default();
    let shared = Arc::clone(&last);
    health.ask_postgres(&postgres.database_url, pulse, move |client| {
        let last = *shared.lock().unwrap_or_else(PoisonError::into_inner);
        Box::pin(async move {
            if let Some((last_offset, at)) = last {
                let lag = pglog::lag(client, partition, last_offset, at.elapsed()).await?;
                gauge!("rocket_rides_unpublished_records").set(lag.record_count as f64);
                if let Some(taken_s) = lag.taken_s.filter(|_| at.elapsed() <= MEASURED_WITHIN) {
                    histogram!("rocket_rides_commit_to_append_seconds").record(taken_s);
                }
            }
            monitor::try_statements(client, &TRIAL).await
        })
    });
    last
}

/// Counts a published page, and notes its end.
pub(crate) fn count(published: &Published, is_fault: bool, last: &LastPublished) {
    *last.lock().unwrap_or_else(PoisonError::into_inner) = Some((published.last_offset(), Instant::now()));
    counter!("rocket_rides_batches_published_total").increment(1);
    counter!("rocket_rides_records_published_total").increment(published.record_count as u64);
    counter!("rocket_rides_entries_added_total").increment(published.added_count as u64);
    counter!("rocket_rides_entries_refused_total").increment(published.refused_count as u64);
    counter!("rocket_rides_faults_injected_total").increment(is_fault.into());
    histogram!("rocket_rides_publish_duration_seconds").record(published.elapsed);
}

/// Says whether this streamer leads.
pub(crate) fn set_leader(is_leader: bool) {
    gauge!("rocket_rides_leader").set(f64::from(u8::from(is_leader)));
}

/// For a streamer that stands by: it has nothing to publish.
pub(crate) fn forget_published(last: &LastPublished) {
    *last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    gauge!("rocket_rides_unpublished_records").set(0.0);
}
