//! The log's records of wallets, compared with the events: those that are retained or staged and, with `--from start`, those
//! that the history has.
//!
//! Each record must say what its event says. The other way round: records are staged in the order of a wallet's versions, so
//! if the record of a version is there, then those of all later versions must be. If nothing was reaped, every event must have
//! a record.

use anyhow::{Context, Result};
use deadpool_postgres::Transaction;
use pglog::Partition;
use serde_json::{Value, json};
use tokio_postgres::Row;

use super::chain::Attempt;
use super::{NAMED_LEN_MAX, PAGE_LEN_MAX};
use crate::audit::Origin;
use crate::audit::report::Report;
use crate::audit::retained::{self, Retained};

/// The records of wallets, each with the event that it names; NULL if it cannot be read. Postgres stores a JSON value with
/// \u0000 or \ud800, and fails to read any key of it.
fn records() -> String {
    let found = retained::found("wallet");
    format!(
        r#"{found}, records AS MATERIALIZED (
            SELECT *, (CASE WHEN strpos(data, '\u') = 0 THEN data::json->>'event_id' END) COLLATE "C" AS event_id FROM found
        )"#
    )
}

/// Compares both ways. Returns the number of records.
pub(super) async fn compare(
    tx: &Transaction<'_>,
    partitions: &[Partition],
    origin: Origin,
    report: &mut Report,
) -> Result<u64> {
    let Retained { partitions, firsts, is_archive_read, is_whole } = retained::look(tx, partitions, origin).await?;
    let places: Places<'_> = (&partitions, &firsts, is_archive_read);
    // Statistics that are older than the records may promise one record, and one pass over them for each event.
    tx.batch_execute("SET LOCAL enable_nestloop = off").await.context("setting up the reading of records")?;
    let record_count = compare_records(tx, places, report).await?;
    repeated(tx, places, report).await?;
    missing(tx, places, is_whole, report).await?;
    tx.batch_execute("SET LOCAL enable_nestloop = on").await.context("ending the reading of records")?;
    Ok(record_count)
}

/// The partitions, the first retained offset of each, and whether the archived records before it are read too.
type Places<'a> = (&'a [Partition], &'a [i64], bool);

/// Compares each record with its event.
async fn compare_records(tx: &Transaction<'_>, places: Places<'_>, report: &mut Report) -> Result<u64> {
    let (partitions, firsts, is_archive_read) = places;
    let records = records();
    let statement = format!(
        "-- operator::audit::wallet_records
         {records}
         SELECT r.action AS record_action, r.data, r.traceparent IS NOT DISTINCT FROM e.traceparent::text AS has_trace,
                e.wallet_id::text, e.event_id::text, e.version, e.balance_minor, e.accepted, e.reason, e.action,
                e.amount_minor, e.counterparty
         FROM records AS r LEFT JOIN wallet_events AS e ON e.event_id = r.event_id"
    );
    let statement = tx.prepare_cached(&statement).await.context("reading the records of wallets")?;
    let cursor = tx.bind(&statement, &[&partitions, &firsts, &is_archive_read]).await.context("reading the records")?;
    let mut record_count = 0;
    loop {
        let rows = tx.query_portal(&cursor, PAGE_LEN_MAX).await.context("reading the records of wallets")?;
        for row in &rows {
            record_count += 1;
            if row.get::<_, Option<&str>>("event_id").is_none() {
                let (action, data): (&str, &str) = (row.get("record_action"), row.get("data"));
                report.differ(format!(
                    "wallets: a record {action} {data} is in the log, and there is no such event (W1)"
                ));
                continue;
            }
            let attempt = Attempt::from_row(row);
            let differing = differing(row, &attempt);
            if !differing.is_empty() {
                report.differ(format!("{attempt}: its record in the log has another {}", differing.join(", ")));
            }
        }
        if rows.is_empty() {
            return Ok(record_count);
        }
    }
}

/// The names of the fields in which the record differs from the event.
fn differing(row: &Row, attempt: &Attempt) -> Vec<String> {
    let data: Value = serde_json::from_str(row.get("data")).unwrap_or_default();
    let (wanted_action, wanted) = record_of(attempt);
    let mut differing = Vec::new();
    if row.get::<_, &str>("record_action") != wanted_action {
        differing.push("action".to_owned());
    }
    let (Value::Object(found), Value::Object(wanted)) = (&data, &wanted) else { return vec!["form".to_owned()] };
    let keys = wanted.keys().chain(found.keys().filter(|key| !wanted.contains_key(*key)));
    differing.extend(keys.filter(|key| found.get(*key) != wanted.get(*key)).map(|key| format!("data.{key}")));
    if !row.get::<_, bool>("has_trace") {
        differing.push("traceparent".to_owned());
    }
    differing
}

/// Action and data of the record of an event.
fn record_of(attempt: &Attempt) -> (&str, Value) {
    let mut data = json!({
        "wallet_id": attempt.wallet_id,
        "version": attempt.version,
        "event_id": attempt.event_id,
        "amount_minor": attempt.amount_minor,
        "balance_minor": attempt.balance_minor,
        "counterparty": attempt.counterparty,
    });
    if attempt.accepted {
        return (&attempt.action, data);
    }
    data["action"] = json!(attempt.action);
    data["reason"] = json!(attempt.reason);
    ("reject", data)
}

/// Reports events that have several records.
async fn repeated(tx: &Transaction<'_>, places: Places<'_>, report: &mut Report) -> Result<()> {
    let (partitions, firsts, is_archive_read) = places;
    let records = records();
    let statement = format!(
        "-- operator::audit::repeated_wallet_records
         {records}
         SELECT e.wallet_id::text, e.version, e.event_id::text, count(*)
         FROM records AS r JOIN wallet_events AS e ON e.event_id = r.event_id
         GROUP BY e.wallet_id, e.version, e.event_id HAVING count(*) > 1 ORDER BY 1, 2, 3 LIMIT $4"
    );
    let rows = tx
        .query(&statement, &[&partitions, &firsts, &is_archive_read, &NAMED_LEN_MAX])
        .await
        .context("looking for repeated records of wallets")?;
    for row in &rows {
        let count: i64 = row.get(3);
        report.differ(format!("{}: it has {count} records in the log", name(row)));
    }
    Ok(())
}

/// Reports events that have no record, and should have one.
async fn missing(tx: &Transaction<'_>, places: Places<'_>, is_whole: bool, report: &mut Report) -> Result<()> {
    let (partitions, firsts, is_archive_read) = places;
    let records = records();
    let statement = format!(
        "-- operator::audit::missing_wallet_records
         {records}, matched AS MATERIALIZED (
             SELECT e.wallet_id, e.version, e.event_id FROM records AS r JOIN wallet_events AS e ON e.event_id = r.event_id
         ), firsts AS (
             SELECT wallet_id, min(version) AS version FROM matched GROUP BY wallet_id
         )
         SELECT e.wallet_id::text, e.version, e.event_id::text
         FROM wallet_events AS e LEFT JOIN firsts ON firsts.wallet_id = e.wallet_id
         WHERE ($4 OR e.version > firsts.version)
           AND NOT EXISTS (SELECT FROM matched AS m WHERE m.event_id = e.event_id)
         ORDER BY 1, 2, 3 LIMIT $5"
    );
    let rows = tx
        .query(&statement, &[&partitions, &firsts, &is_archive_read, &is_whole, &NAMED_LEN_MAX])
        .await
        .context("looking for missing records of wallets")?;
    for row in &rows {
        report.differ(format!("{}: it has no record in the log (W1)", name(row)));
    }
    Ok(())
}

/// The event, as [`Attempt`] names it.
fn name(row: &Row) -> String {
    let (wallet, version, event): (&str, i64, &str) = (row.get(0), row.get(1), row.get(2));
    format!("wallet {wallet}, version {version}, event {event}")
}
