//! The metrics of the container: what it does, and how many units wait.
//!
//! Counters are counted where something happens. Gauges of units and destinations are read out of Postgres, by one query every
//! few seconds that reads at most [`COUNT_MAX`] units.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use monitor::{Unit, counter, declare_counter, declare_gauge, describe_histogram, gauge, histogram};

use crate::destination::Outcome;
use crate::units::{Accepted, State, Taken};

/// At most this many units are counted for a gauge.
const COUNT_MAX: i64 = 10_000;

/// The states of the gauge: those that a unit leaves again.
const STATES: [State; 5] = [State::Queued, State::FannedOut, State::RollingBack, State::FailQueued, State::Dead];

/// The verdicts that are counted. A unit that a person drops is no verdict of this process.
const VERDICTS: [State; 4] = [State::Committed, State::Rejected, State::FailQueued, State::Dead];

/// The outcomes of a store.
const OUTCOMES: [&str; 5] = ["stored", "declined", "failed_4xx", "failed_5xx", "timed_out"];

/// Describes every metric. `destinations` are those that store by themselves.
pub(crate) fn describe(destinations: &[String]) {
    declare_counter("rocket_rides_units_accepted_total", "Requests and files that became units", &[]);
    declare_counter("rocket_rides_unit_attempts_total", "Attempts that were begun or taken up", &[]);
    for state in VERDICTS {
        let help = "Verdicts, by the state of the unit after it";
        declare_counter("rocket_rides_unit_verdicts_total", help, &[("state", state.name())]);
    }
    let help = "From when a unit was accepted until it was committed or rejected";
    describe_histogram!("rocket_rides_unit_seconds", Unit::Seconds, help);
    for state in STATES {
        let help = "Units that are not settled, by state; at most 10,000 are counted";
        declare_gauge("rocket_rides_units", help, &[("state", state.name())]);
    }
    let oldest = "How long the oldest unit that is neither settled nor dead has waited";
    declare_gauge("rocket_rides_unit_oldest_seconds", oldest, &[]);
    let rollback = "For how long the oldest unit that is rolled back has been rolled back";
    declare_gauge("rocket_rides_unit_rollback_seconds", rollback, &[]);
    for destination in destinations {
        let labels = [("destination", destination.as_str())];
        for outcome in OUTCOMES {
            let labels = [labels[0], ("outcome", outcome)];
            declare_counter("rocket_rides_destination_stores_total", "Parts, by the outcome of their store", &labels);
        }
        declare_counter("rocket_rides_destination_undos_failed_total", "Undos that are tried again", &labels);
        declare_gauge("rocket_rides_destination_breaker_open", "1 while no unit is begun that needs it", &labels);
        let help = "Units that wait because its breaker is open, or because it failed in their last attempt";
        declare_gauge("rocket_rides_destination_waiting_units", help, &labels);
    }
    describe_histogram!("rocket_rides_destination_seconds", Unit::Seconds, "How long a store took");
    declare_gauge("rocket_rides_spool_files", "Files that the last sweep found in the spool", &[]);
    let unusable = "Files among them that cannot become units";
    declare_gauge("rocket_rides_spool_unusable_files", unusable, &[]);
    declare_counter("rocket_rides_spool_taken_up_total", "Files without a unit that became units", &[]);
    declare_gauge("rocket_rides_spool_free_ratio", "The share of its disk that is free, 0 to 1; a bucket has 1", &[]);
}

/// Counts a request that has become a unit.
pub(crate) fn accepted(outcome: &Accepted) {
    if matches!(outcome, Accepted::New { .. }) {
        counter!("rocket_rides_units_accepted_total").increment(1);
    }
}

/// Counts an attempt and its verdict, if it has one. `took` is the time since the unit was taken.
pub(crate) fn driven(taken: &Taken, took: Duration, verdict: Option<State>) {
    if taken.state == State::FannedOut {
        counter!("rocket_rides_unit_attempts_total").increment(1);
    }
    let Some(state) = verdict else { return };
    counter!("rocket_rides_unit_verdicts_total", "state" => state.name()).increment(1);
    if state.is_final() {
        histogram!("rocket_rides_unit_seconds").record((taken.age + took).as_secs_f64());
    }
}

/// Counts a store.
pub(crate) fn stored(destination: &str, outcome: &Outcome, took: Duration) {
    let (destination, outcome) = (destination.to_owned(), outcome.state());
    counter!("rocket_rides_destination_stores_total", "destination" => destination.clone(), "outcome" => outcome)
        .increment(1);
    histogram!("rocket_rides_destination_seconds", "destination" => destination).record(took.as_secs_f64());
}

/// Counts an undo that has failed.
pub(crate) fn undo_failed(destination: &str) {
    counter!("rocket_rides_destination_undos_failed_total", "destination" => destination.to_owned()).increment(1);
}

/// Counts a file that has become a unit.
pub(crate) fn taken_up(outcome: &Accepted) {
    accepted(outcome);
    if matches!(outcome, Accepted::New { .. }) {
        counter!("rocket_rides_spool_taken_up_total").increment(1);
    }
}

/// Shows how many files a sweep has seen, and how many of them cannot become units.
pub(crate) fn swept(listed_count: usize, unusable_count: usize) {
    gauge!("rocket_rides_spool_files").set(listed_count as f64);
    gauge!("rocket_rides_spool_unusable_files").set(unusable_count as f64);
}

/// Shows the share of the spool's disk that is free. `None`: a bucket is never full.
pub(crate) fn spool_free(ratio: Option<f64>) {
    gauge!("rocket_rides_spool_free_ratio").set(ratio.unwrap_or(1.0));
}

/// Reads the gauges out of Postgres. `destinations` are those that store by themselves.
///
/// # Errors
/// Postgres is away, or a table or a right is missing.
pub(crate) async fn read_gauges(client: &Client, destinations: &[String]) -> Result<()> {
    // A part with a status has failed in the newest attempt.
    let query = "-- container::gauges
        WITH open AS MATERIALIZED (
            SELECT uow, state, attempt, created_at FROM units
            WHERE state IN ('queued', 'fanned_out', 'rolling_back', 'fail_queued') ORDER BY due_at LIMIT $1
        ), dead AS (
            SELECT FROM units WHERE state = 'dead' LIMIT $1
        )
        SELECT 'units' AS figure, state::text AS name, count(*)::float8 AS value FROM open GROUP BY state
        UNION ALL SELECT 'units', 'dead', count(*) FROM dead
        UNION ALL SELECT 'oldest', '', extract(epoch FROM now() - min(created_at)) FROM open
        UNION ALL SELECT 'rollback', '', extract(epoch FROM now() - min(r.created_at))
                  FROM open AS o JOIN unit_reports AS r ON r.uow = o.uow AND r.attempt = o.attempt WHERE o.state = 'rolling_back'
        UNION ALL SELECT 'open', name, 1 FROM destinations WHERE open_until IS NOT NULL
        UNION ALL SELECT 'waiting', p.destination, count(*)
                  FROM open AS o JOIN unit_parts AS p ON p.uow = o.uow JOIN destinations AS d ON d.name = p.destination
                  WHERE o.state IN ('queued', 'fail_queued') AND (d.open_until IS NOT NULL OR p.status IS NOT NULL)
                  GROUP BY p.destination";
    let rows = client.query(query, &[&COUNT_MAX]).await.context("counting units")?;
    // A figure without a row is 0, and so is the age of no unit.
    let found: HashMap<(&str, &str), f64> = rows
        .iter()
        .map(|row| ((row.get("figure"), row.get("name")), row.get::<_, Option<f64>>("value").unwrap_or(0.0)))
        .collect();
    let value = |figure, name| found.get(&(figure, name)).copied().unwrap_or(0.0);
    for state in STATES {
        gauge!("rocket_rides_units", "state" => state.name()).set(value("units", state.name()));
    }
    gauge!("rocket_rides_unit_oldest_seconds").set(value("oldest", "").max(0.0));
    gauge!("rocket_rides_unit_rollback_seconds").set(value("rollback", "").max(0.0));
    for name in destinations {
        let set = |metric, figure| gauge!(metric, "destination" => name.clone()).set(value(figure, name));
        set("rocket_rides_destination_breaker_open", "open");
        set("rocket_rides_destination_waiting_units", "waiting");
    }
    Ok(())
}
