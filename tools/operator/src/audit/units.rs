//! The container's units: whether what Postgres shows of their destinations is what their verdicts say.
//!
//! - C2: the parts of a unit obey its verdict, an attempt has one verdict, and the verdict is in the log.
//! - C3: a destination of the kind `rows` has one row of each committed unit, and none of any other. Its table is found by the
//!   fingerprint in `destinations`.
//!
//! Other destinations are not in Postgres. All of it is read in the audit's one snapshot.

use anyhow::{Context, Result};
use container::declaration::Kind;
use deadpool_postgres::Transaction;
use pglog::Partition;

use super::Origin;
use super::report::{Report, UnitsLine};
use super::retained::{self, Retained};

/// Differences of one kind that are named.
const NAMED_LEN_MAX: i64 = 100;

/// Audits the units. There is no line in the report if there is none, or if the database has no tables of units.
pub(super) async fn audit(
    tx: &Transaction<'_>,
    partitions: &[Partition],
    origin: Origin,
    report: &mut Report,
) -> Result<()> {
    if !has_tables(tx).await? {
        report.note("units were not compared: this database has no tables of units (schema.sql makes them)".to_owned());
        return Ok(());
    }
    let before = report.difference_count;
    // Everything is read, and compared in one pass: the session's settings avoid that.
    tx.batch_execute("SET LOCAL enable_seqscan = on; SET LOCAL enable_nestloop = off").await.context("setting up")?;
    let mut line = count(tx).await?;
    if line.unit_count == 0 {
        return Ok(());
    }
    compare_parts(tx, report).await?;
    for (destination, table) in tables_of_rows(tx).await? {
        line.row_count += compare_rows(tx, &destination, &table, report).await?;
    }
    let retained = retained::look(tx, partitions, origin).await?;
    line.record_count = compare_records(tx, &retained, report).await?;
    find_missing_records(tx, &retained, report).await?;
    tx.batch_execute("SET LOCAL enable_nestloop = on").await.context("ending the reading of units")?;
    line.is_equal = report.difference_count == before;
    report.units = Some(line);
    Ok(())
}

async fn has_tables(tx: &Transaction<'_>) -> Result<bool> {
    let sql = "-- operator::audit::has_units\nSELECT to_regclass('unit_parts') IS NOT NULL";
    Ok(tx.query_one(sql, &[]).await.context("looking for the tables of units")?.get(0))
}

async fn count(tx: &Transaction<'_>) -> Result<UnitsLine> {
    let sql = "-- operator::audit::units
        SELECT count(*), count(*) FILTER (WHERE state = 'committed'), count(*) FILTER (WHERE settled_at IS NULL) FROM units";
    let row = tx.query_one(sql, &[]).await.context("counting units")?;
    let (unit_count, committed_count, open_count) = (row.get(0), row.get(1), row.get(2));
    Ok(UnitsLine { unit_count, committed_count, open_count, ..UnitsLine::default() })
}

/// Compares each part with the verdict of its unit.
async fn compare_parts(tx: &Transaction<'_>, report: &mut Report) -> Result<()> {
    let sql = "-- operator::audit::parts
        SELECT u.uow, u.state, p.destination, p.state AS part_state FROM units AS u JOIN unit_parts AS p ON p.uow = u.uow
        WHERE CASE WHEN u.state = 'committed' THEN p.state NOT IN ('stored', 'declined')
                   WHEN u.state IN ('rejected', 'fail_queued', 'dead', 'dropped') THEN p.state IN ('stored', 'timed_out') END
        ORDER BY 1, 3 LIMIT $1";
    for row in &tx.query(sql, &[&NAMED_LEN_MAX]).await.context("comparing parts")? {
        let (uow, state): (i64, &str) = (row.get("uow"), row.get("state"));
        let (destination, part): (&str, &str) = (row.get("destination"), row.get("part_state"));
        report.differ(format!("unit {uow}: it is {state}, and its part {destination} is {part} (C2)"));
    }
    Ok(())
}

/// The destinations of the kind `rows`, each with its table.
async fn tables_of_rows(tx: &Transaction<'_>) -> Result<Vec<(String, String)>> {
    let sql = "-- operator::audit::tables_of_rows
        SELECT relname::text FROM pg_class
        WHERE relkind IN ('r', 'p') AND pg_table_is_visible(oid) AND relnamespace = (
                  SELECT relnamespace FROM pg_class WHERE oid = to_regclass('units'))
              AND (SELECT count(*) FROM pg_attribute
                   WHERE attrelid = pg_class.oid AND attname IN ('uow', 'subject', 'data') AND NOT attisdropped) = 3
        ORDER BY 1";
    let tables = tx.query(sql, &[]).await.context("looking for tables of rows")?;
    let sql = "-- operator::audit::destinations\nSELECT name::text, fingerprint FROM destinations ORDER BY 1";
    let destinations = tx.query(sql, &[]).await.context("reading the destinations")?;
    let mut found = Vec::new();
    for table in tables.iter().map(|row| row.get::<_, String>(0)) {
        let fingerprint = Kind::Rows { table: table.clone() }.fingerprint();
        let matching = destinations.iter().filter(|row| row.get::<_, &[u8]>("fingerprint") == fingerprint);
        found.extend(matching.map(|row| (row.get("name"), table.clone())));
    }
    Ok(found)
}

/// Compares the rows of a destination with the verdicts. Returns the number of rows.
async fn compare_rows(tx: &Transaction<'_>, destination: &str, table: &str, report: &mut Report) -> Result<i64> {
    // The name is that of a table that the container was allowed to use: lower-case letters, digits and `_`.
    let sql = format!(
        "-- operator::audit::rows
         SELECT u.uow, u.state, count(r.uow) AS row_count, COALESCE(bool_or(r.subject <> u.subject), false) AS is_other
         FROM units AS u JOIN unit_parts AS p ON p.uow = u.uow AND p.destination = $1 LEFT JOIN \"{table}\" AS r ON r.uow = u.uow
         GROUP BY u.uow
         HAVING count(r.uow) <> CASE WHEN u.state = 'committed' THEN 1 ELSE 0 END OR bool_or(r.subject <> u.subject)
         ORDER BY 1 LIMIT $2"
    );
    for row in &tx.query(&sql, &[&destination, &NAMED_LEN_MAX]).await.context("comparing rows")? {
        let (uow, state): (i64, &str) = (row.get("uow"), row.get("state"));
        let row_count: i64 = row.get("row_count");
        if row.get("is_other") {
            report.differ(format!("unit {uow}: its row in {table} is about another subject"));
        } else {
            report.differ(format!("unit {uow}: it is {state}, and {table} has {row_count} rows of it (C3)"));
        }
    }
    let sql = format!("-- operator::audit::row_count\nSELECT count(*) FROM \"{table}\"");
    Ok(tx.query_one(&sql, &[]).await.context("counting rows")?.get(0))
}

/// The records of verdicts. The number of a unit is NULL if the record cannot be read: Postgres fails to read a key of a JSON
/// value with \u0000.
fn verdicts() -> String {
    let found = retained::found("unit");
    format!(
        r#"{found}, verdicts AS MATERIALIZED (
             SELECT action, CASE WHEN strpos(data, '\u') = 0 THEN data::json->>'uow' END AS uow,
                    CASE WHEN strpos(data, '\u') = 0 THEN data::json->>'attempt' END AS attempt
             FROM found WHERE action IN ('commit', 'rejected', 'fail_queued', 'dead', 'dropped')
         )"#
    )
}

/// Compares the verdicts in the log with the units. Returns the number of verdicts. A record whose unit is gone is no
/// difference: a unit may be deleted when its outcome is not asked for any more.
async fn compare_records(tx: &Transaction<'_>, retained: &Retained, report: &mut Report) -> Result<i64> {
    let Retained { partitions, firsts, is_archive_read, .. } = retained;
    let verdicts = verdicts();
    let sql = format!(
        "-- operator::audit::verdicts
         {verdicts}
         SELECT u.uow, u.state, v.attempt, string_agg(v.action, ', ' ORDER BY v.action) AS actions
         FROM verdicts AS v JOIN units AS u ON u.uow::text = v.uow
         GROUP BY u.uow, v.attempt
         -- A drop repeats the attempt of the verdict before it.
         HAVING count(*) > count(DISTINCT v.action = 'dropped') OR bool_or(v.action = 'dropped') AND u.state <> 'dropped'
                OR bool_or(v.action = 'commit') AND (u.state <> 'committed' OR u.attempt::text <> v.attempt)
                OR bool_or(v.action = 'rejected') AND u.state <> 'rejected'
         ORDER BY 1, 3 LIMIT $4"
    );
    let rows = tx.query(&sql, &[partitions, firsts, is_archive_read, &NAMED_LEN_MAX]).await;
    for row in &rows.context("comparing verdicts")? {
        let (uow, attempt): (i64, Option<&str>) = (row.get("uow"), row.get("attempt"));
        let (state, actions): (&str, &str) = (row.get("state"), row.get("actions"));
        let attempt = attempt.unwrap_or("of no number");
        report.differ(format!("unit {uow}: it is {state}, and the log has of its attempt {attempt}: {actions} (C2)"));
    }
    let sql = format!("-- operator::audit::verdict_count\n{verdicts} SELECT count(*) FROM verdicts");
    let row = tx.query_one(&sql, &[partitions, firsts, is_archive_read]).await.context("counting verdicts")?;
    Ok(row.get(0))
}

/// Reports verdicts that have no record, and should have one. If records were reaped, these are the verdicts that are later than
/// the last reaped batch. A transaction that was open when the batch was cut began a little before that.
async fn find_missing_records(tx: &Transaction<'_>, retained: &Retained, report: &mut Report) -> Result<()> {
    let Retained { partitions, firsts, is_archive_read, is_whole } = retained;
    let sql = format!(
        "-- operator::audit::missing_verdicts
         {}, reaped AS (
             SELECT max(b.created_at) + INTERVAL '10 minutes' AS until
             FROM edges JOIN log_batches AS b ON b.partition = edges.partition AND b.first_offset < edges.first_retained
         )
         SELECT u.uow, u.state FROM units AS u CROSS JOIN reaped
         WHERE u.state IN ('committed', 'rejected', 'dead', 'dropped')
               AND ($4 OR u.state IN ('committed', 'rejected', 'dropped') AND u.settled_at > reaped.until)
               AND NOT EXISTS (SELECT FROM verdicts AS v WHERE v.uow = u.uow::text AND v.action =
                               CASE u.state WHEN 'committed' THEN 'commit' ELSE u.state END)
         ORDER BY 1 LIMIT $5",
        verdicts()
    );
    let rows = tx.query(&sql, &[partitions, firsts, is_archive_read, is_whole, &NAMED_LEN_MAX]).await;
    for row in &rows.context("looking for missing verdicts")? {
        let (uow, state): (i64, &str) = (row.get("uow"), row.get("state"));
        report.differ(format!("unit {uow}: it is {state}, and the log has no record of that verdict"));
    }
    Ok(())
}
