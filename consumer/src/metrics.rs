//! The consumer's metrics: its counters, and how far it is behind the log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use deadpool_postgres::ClientWrapper as Client;
use monitor::{Health, Pulse, Unit, counter, declare_counter, describe_gauge, describe_histogram, gauge, histogram};
use pglog::{Partition, Place};

use crate::config::Config;
use crate::outcome::Progress;

const LAG_RECORDS: &str = "rocket_rides_lag_records";
const LAG_SECONDS: &str = "rocket_rides_lag_seconds";
const COMMIT_TO_FOLD: &str = "rocket_rides_commit_to_fold_seconds";

/// The checkpoint of each partition that was committed last, and when.
pub(crate) type LastCommits = Arc<Mutex<BTreeMap<Partition, (i64, Instant)>>>;

/// Only a commit of the last second is measured, so that each is measured once: Postgres is asked every second.
const MEASURED_WITHIN: Duration = Duration::from_secs(1);

/// Statements that succeed only while records can be read and commits be made, and change no row.
const TRIAL: [&str; 3] = [
    "-- consumer::try_commit\nUPDATE checkpoints SET last_offset = last_offset, state = state WHERE false",
    "-- consumer::try_dead_letter
     INSERT INTO dead_letters (name, partition, record_offset, object, action, data, reason)
     SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE false",
    "-- consumer::try_records\nSELECT FROM staged_log_records, log_batches WHERE false",
];

/// Describes the metrics, and begins to measure how far the consumer is behind. `pulse` beats while
/// commits can be made.
pub(crate) fn start(health: &Health, config: &Config, pulse: Pulse) -> LastCommits {
    let labels = [("consumer", config.name.as_str())];
    for (name, help) in [
        ("rocket_rides_records_applied_total", "Records folded into the state"),
        ("rocket_rides_records_passed_total", "Records of other kinds, passed over"),
        ("rocket_rides_dead_letters_total", "Records that could not be applied, put aside"),
        ("rocket_rides_gaps_healed_total", "Times that the stream lacked records and Postgres had them"),
        ("rocket_rides_records_healed_total", "Records read from Postgres because the stream lacked them"),
        ("rocket_rides_duplicates_skipped_total", "Entries whose offset had been passed"),
        ("rocket_rides_entries_rejected_total", "Entries of the stream that are not of this log"),
        ("rocket_rides_crashes_survived_total", "Crashes on purpose"),
    ] {
        declare_counter(name, help, &labels);
    }
    describe_gauge!(LAG_RECORDS, "Records of a partition that have an offset and are not folded yet");
    describe_gauge!(LAG_SECONDS, Unit::Seconds, "How long the first of these records has waited");
    describe_histogram!(
        COMMIT_TO_FOLD,
        Unit::Seconds,
        "From when a record was staged until it was in the committed state; one record a second and partition at most"
    );
    let last = LastCommits::default();
    let (shared, name) = (Arc::clone(&last), config.name.clone());
    health.ask_postgres(&config.postgres.database_url, pulse, move |client| {
        let (last, name) = (shared.lock().unwrap_or_else(PoisonError::into_inner).clone(), name.clone());
        Box::pin(async move {
            tell_lags(client, &last, &name).await?;
            monitor::try_statements(client, &TRIAL).await
        })
    });
    last
}

/// Measures how far the consumer is behind in all partitions, by one statement.
async fn tell_lags(client: &Client, last: &BTreeMap<Partition, (i64, Instant)>, name: &str) -> Result<()> {
    let places: Vec<Place> = last
        .iter()
        .map(|(partition, (offset, at))| Place { partition: *partition, offset: *offset, since: at.elapsed() })
        .collect();
    for (Place { partition, since, .. }, lag) in places.iter().zip(pglog::lags(client, &places).await?) {
        let labels = [("consumer", name.to_owned()), ("partition", partition.to_string())];
        gauge!(LAG_RECORDS, &labels).set(lag.record_count as f64);
        gauge!(LAG_SECONDS, &labels).set(lag.waiting_s);
        if let Some(taken_s) = lag.taken_s.filter(|_| *since <= MEASURED_WITHIN) {
            histogram!(COMMIT_TO_FOLD, "consumer" => name.to_owned()).record(taken_s);
        }
    }
    Ok(())
}

/// Notes the checkpoints that have moved.
pub(crate) fn set_checkpoints(last: &LastCommits, places: impl Iterator<Item = (Partition, i64)>) {
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    for (partition, last_offset) in places {
        if last.get(&partition).is_none_or(|(before, _)| *before != last_offset) {
            last.insert(partition, (last_offset, Instant::now()));
        }
    }
}

/// Counts what a step did.
pub(crate) fn count(name: &str, progress: &Progress) {
    let add = |metric: &'static str, count: usize| {
        if count > 0 {
            counter!(metric, "consumer" => name.to_owned()).increment(count as u64);
        }
    };
    add("rocket_rides_records_applied_total", progress.applied_count);
    add("rocket_rides_records_passed_total", progress.passed_count);
    add("rocket_rides_dead_letters_total", progress.dead_letter_count);
    add("rocket_rides_gaps_healed_total", usize::from(progress.healed_count > 0));
    add("rocket_rides_records_healed_total", progress.healed_count);
    add("rocket_rides_duplicates_skipped_total", progress.duplicate_count);
    add("rocket_rides_entries_rejected_total", progress.rejected_count);
}
