//! The verdict that all destinations keep their parts, for many units in one transaction.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use tokio_postgres::types::ToSql;

use super::settle::record;
use super::{Held, PartOutcome, Taken};

/// The row of the last resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The table, as it was declared and checked.
    pub table: String,
    /// The document, a JSON text.
    pub data: String,
}

/// A unit that all destinations have stored or declined.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The unit, with the lease of its holder.
    pub unit: Taken,
    /// Its row in the last resource.
    pub row: Option<Row>,
    /// The outcomes.
    pub parts: Vec<PartOutcome>,
}

/// Gives the verdicts in one transaction, with the rows of the last resource, the outcomes and the log records. Returns for each
/// whether it was given. If not, the lease was lost, and nothing was written about this unit (C2).
///
/// # Errors
/// Postgres is away, and whether they were committed is unknown; or it refuses a row, and nothing was written.
pub(super) async fn commit_all(client: &Client, verdicts: &[Verdict]) -> Result<Vec<bool>> {
    let records = verdicts.iter().map(|verdict| record(Held::from(&verdict.unit), 200, None));
    let (uows, leases) =
        verdicts.iter().map(|verdict| (verdict.unit.uow, verdict.unit.lease)).unzip::<_, _, Vec<_>, Vec<_>>();
    let parts = places(verdicts)
        .flat_map(|(place, verdict)| verdict.parts.iter().map(move |part| ((place, verdict.unit.uow), part)));
    let (part_units, parts): (Vec<(i64, i64)>, Vec<&PartOutcome>) = parts.unzip();
    let (part_places, part_uows): (Vec<i64>, Vec<i64>) = part_units.into_iter().unzip();
    let rows = Rows::of(verdicts);
    let mut params: Vec<Box<dyn ToSql + Sync + Send + '_>> = vec![
        Box::new(uows),
        Box::new(leases),
        Box::new(records.collect::<Vec<_>>()),
        Box::new(part_places),
        Box::new(part_uows),
        Box::new(parts.iter().map(|part| part.destination.as_str()).collect::<Vec<_>>()),
        Box::new(parts.iter().map(|part| part.state).collect::<Vec<_>>()),
    ];
    let statement = format!("{COMMIT}{}\nSELECT place FROM settled", rows.write(&mut params));
    let statement = client.prepare_cached(&statement).await.context("giving verdicts")?;
    let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|param| &**param as _).collect();
    let settled = client.query(&statement, &params).await.context("giving verdicts")?;
    let settled: HashSet<i64> = settled.iter().map(|row| row.get("place")).collect();
    Ok(places(verdicts).map(|(place, _)| settled.contains(&place)).collect())
}

/// A verdict is known by its place in the group, because a unit may be in it twice: with a lease that was lost, and with the
/// newer one. The state is compared so that no partial index fits: through that of open units, each group would read all units that
/// wait.
const COMMIT: &str = "-- container::commit
    WITH settled AS (
        UPDATE units AS u
        SET state = 'committed', status = 200, error = NULL, settled_at = now(), due_at = 'infinity'
        FROM unnest($1::bigint[], $2::bigint[], $3::text[]) WITH ORDINALITY AS given (uow, lease, record, place)
        WHERE u.uow = given.uow AND u.lease = given.lease AND u.state IS NOT DISTINCT FROM 'fanned_out'
        RETURNING place, u.uow, u.attempt, u.resource, u.subject, u.traceparent, record
    ), parts AS (
        UPDATE unit_parts AS p SET state = part.state, status = NULL, error = NULL, attempts = settled.attempt
        FROM unnest($4::bigint[], $5::bigint[], $6::text[], $7::text[]) AS part (place, uow, destination, state)
            JOIN settled USING (place)
        -- Both columns of the key come from one side: in any plan they are looked up together.
        WHERE p.uow = part.uow AND p.destination = part.destination
    ), records AS (
        -- After the row of the unit is locked (I1).
        INSERT INTO staged_log_records (partition, object, action, data, traceparent)
        SELECT partition_of(resource || '/' || subject), 'unit', 'commit', record::json, traceparent FROM settled
    )";

fn places(verdicts: &[Verdict]) -> impl Iterator<Item = (i64, &Verdict)> {
    (1..).zip(verdicts)
}

/// Rows of the last resource: place and document, by table.
struct Rows<'a>(BTreeMap<&'a str, Vec<(i64, &'a str)>>);

impl<'a> Rows<'a> {
    fn of(verdicts: &'a [Verdict]) -> Self {
        let mut tables = BTreeMap::<_, Vec<_>>::new();
        for (place, verdict) in places(verdicts) {
            if let Some(row) = &verdict.row {
                tables.entry(row.table.as_str()).or_default().push((place, row.data.as_str()));
            }
        }
        Self(tables)
    }

    /// One insertion per table, as a part of the statement that begins with [`COMMIT`].
    fn write(&self, params: &mut Vec<Box<dyn ToSql + Sync + Send + 'a>>) -> String {
        let mut insertions = String::new();
        for (number, (table, rows)) in self.0.iter().enumerate() {
            let (places, documents): (Vec<i64>, Vec<&str>) = rows.iter().copied().unzip();
            params.push(Box::new(places));
            params.push(Box::new(documents));
            let (first, second) = (params.len() - 1, params.len());
            insertions += &format!(
                ", rows_{number} AS (
                    INSERT INTO {table} (uow, subject, data)
                    SELECT uow, subject, document::jsonb
                    FROM unnest(${first}::bigint[], ${second}::text[]) AS row (place, document) JOIN settled USING (place)
                )"
            );
        }
        insertions
    }
}
