//! Whether a request would be accepted now: Postgres takes its unit, and the spool takes its file.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::shutdown::{CancellationToken, sleep_or_stop};
use monitor::{Health, Pulse};
use tokio::time::timeout;
use tracing::warn;

use crate::declaration::{Declaration, Kind};
use crate::metrics;
use crate::spool::Spool;

/// The container is not ready if Postgres or the spool has not taken anything for this long.
const AGE_MAX: Duration = Duration::from_secs(5);

/// How often the spool is tried.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long the spool may take.
const SPOOL_WAIT: Duration = Duration::from_secs(3);

/// How often the gauges are read.
const GAUGES_INTERVAL: Duration = Duration::from_secs(2);

/// Statements that succeed only while units can be accepted and settled, and change no row.
const TRIAL: [&str; 7] = [
    "-- container::try_accept
     INSERT INTO units (unit_key, resource, subject, state, take_count, due_at, lease, spool_id, spool_name, idempotency_key,
                        content_hash, traceparent)
     SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE false",
    "-- container::try_parts\nINSERT INTO unit_parts (uow, destination) SELECT NULL, NULL WHERE false",
    "-- container::try_take
     UPDATE units SET state = state, attempt = attempt, take_count = take_count, due_at = due_at, lease = lease, status = status,
                      error = error, settled_at = settled_at, file_gone_at = file_gone_at WHERE false",
    "-- container::try_outcomes
     UPDATE unit_parts SET state = state, attempts = attempts, status = status, error = error WHERE false",
    "-- container::try_report
     INSERT INTO unit_reports (uow, attempt, destination, state, status, error)
     SELECT NULL, NULL, NULL, NULL, NULL, NULL WHERE false",
    "-- container::try_breaker
     UPDATE destinations SET failure_count = failure_count, open_until = open_until, canary = canary WHERE false",
    "-- container::try_stage
     INSERT INTO staged_log_records (partition, object, action, data, traceparent)
     SELECT partition_of(NULL), NULL, NULL, NULL, NULL WHERE false",
];

/// Asks Postgres and the spool from now on, and reads the gauges. Does nothing if the health is not served.
pub(crate) fn watch(
    health: &Health,
    postgres: &tokio_postgres::Config,
    spool: &Spool,
    declaration: &Declaration,
    shutdown: &CancellationToken,
) {
    let trial = trial(declaration);
    let destinations: Arc<[String]> = declaration.storing().map(str::to_owned).collect();
    metrics::describe(&destinations);
    let read_at: Mutex<Option<Instant>> = Mutex::default();
    health.ask_postgres(postgres, health.pulse("postgres", AGE_MAX), move |client| {
        let is_gauged = is_due(&read_at);
        let (trial, destinations) = (Arc::clone(&trial), Arc::clone(&destinations));
        Box::pin(async move {
            let statements: Vec<&str> = trial.iter().map(String::as_str).collect();
            monitor::try_statements(client, &statements).await?;
            if is_gauged { metrics::read_gauges(client, &destinations).await } else { Ok(()) }
        })
    });
    let pulse = health.pulse("spool", AGE_MAX);
    if health.is_served() {
        tokio::spawn(try_spool(spool.clone(), pulse, shutdown.clone()));
    }
}

/// The statements of a declaration: the destination `rows` may have a table of its own.
fn trial(declaration: &Declaration) -> Arc<[String]> {
    let tables = declaration.destinations.values().filter_map(|destination| match &destination.kind {
        Kind::Rows { table } => Some(format!(
            "-- container::try_row\nINSERT INTO \"{table}\" (uow, subject, data) SELECT NULL, NULL, NULL WHERE false"
        )),
        _ => None,
    });
    TRIAL.iter().map(|statement| (*statement).to_owned()).chain(tables).collect()
}

fn is_due(read_at: &Mutex<Option<Instant>>) -> bool {
    let mut read_at = read_at.lock().unwrap_or_else(PoisonError::into_inner);
    let is_due = read_at.is_none_or(|read_at| read_at.elapsed() >= GAUGES_INTERVAL);
    if is_due {
        *read_at = Some(Instant::now());
    }
    is_due
}

async fn try_spool(spool: Spool, pulse: Pulse, shutdown: CancellationToken) {
    loop {
        match timeout(SPOOL_WAIT, spool.try_write()).await {
            Ok(Ok(free_ratio)) => {
                metrics::spool_free(free_ratio);
                pulse.beat();
            }
            Ok(Err(error)) => warn!(error = format!("{:#}", anyhow::Error::from(error)), "the spool takes no file"),
            Err(_) => warn!("the spool does not respond"),
        }
        if !sleep_or_stop(INTERVAL, &shutdown).await {
            return;
        }
    }
}
