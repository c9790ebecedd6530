//! The past of a board, for its rebuild: the attempts that have committed, those that were undone, and those in flight.

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::board::Past;

/// Rows that are read together.
pub const PAST_LEN: usize = 500;

/// An attempt that was in flight and has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The number of the unit.
    pub uow: i64,
    /// The attempt.
    pub attempt: i32,
    /// Whether it has committed.
    pub is_committed: bool,
    /// The key of the unit.
    pub key: Uuid,
    /// The thing that it is about.
    pub subject: String,
}

/// The newest committed document of each subject after `after`, in the order of the subjects, out of the table of a last
/// resource. If the row of its unit is gone, it counts if `is_current`: new units of the resource have parts in the board. At most
/// [`PAST_LEN`].
///
/// # Errors
/// Postgres is away, or the table is missing.
pub async fn committed(client: &Client, table: &str, board: &str, is_current: bool, after: &str) -> Result<Vec<Past>> {
    let query = format!(
        "-- container::past_committed
         SELECT DISTINCT ON (m.subject) m.uow, m.subject, m.data::text, u.unit_key::text, u.attempt
         FROM {table} AS m LEFT JOIN units AS u ON u.uow = m.uow
         WHERE m.subject > $1 AND CASE WHEN u.uow IS NULL THEN $3 ELSE EXISTS (
             SELECT FROM unit_parts AS p WHERE p.uow = m.uow AND p.destination = $2 AND p.state = 'stored') END
         ORDER BY m.subject, m.uow DESC LIMIT $4"
    );
    let rows = client.query(&query, &[&after, &board, &is_current, &(PAST_LEN as i64)]).await;
    rows.context("reading committed documents")?.iter().map(past).collect()
}

/// The committed documents of these units out of the table of a last resource.
///
/// # Errors
/// Postgres is away, or the table is missing.
pub async fn committed_rows(client: &Client, table: &str, uows: &[i64]) -> Result<Vec<Past>> {
    let query = format!(
        "-- container::past_of_units
         SELECT m.uow, m.subject, m.data::text, u.unit_key::text, u.attempt
         FROM {table} AS m JOIN units AS u ON u.uow = m.uow WHERE m.uow = ANY ($1)"
    );
    client.query(&query, &[&uows]).await.context("reading committed documents")?.iter().map(past).collect()
}

fn past(row: &Row) -> Result<Past> {
    let key: Option<&str> = row.get("unit_key");
    Ok(Past {
        uow: row.get("uow"),
        key: key.map_or(Ok(Uuid::nil()), Uuid::try_parse).context("reading the key of a unit")?,
        attempt: row.get::<_, Option<i32>>("attempt").unwrap_or(1),
        subject: row.get("subject"),
        document: Some(row.get::<_, String>("data").into()),
    })
}

/// The undone attempts of up to [`PAST_LEN`] units with a part in this board, after the unit `after`. The second result is the last
/// of these units.
///
/// # Errors
/// Postgres is away.
pub async fn undone(client: &Client, board: &str, after: i64) -> Result<(Vec<Past>, Option<i64>)> {
    let query = "-- container::past_undone
        SELECT uow, unit_key::text, subject,
               attempt - CASE WHEN state IN ('rolling_back', 'rejected', 'dead', 'dropped') THEN 0 ELSE 1 END AS undone_count
        FROM units AS u
        WHERE uow > $1 AND (attempt > 1 OR state IN ('rolling_back', 'rejected', 'dead', 'dropped'))
              AND EXISTS (SELECT FROM unit_parts AS p WHERE p.uow = u.uow AND p.destination = $2)
        ORDER BY uow LIMIT $3";
    let rows = client.query(query, &[&after, &board, &(PAST_LEN as i64)]).await.context("reading undone attempts")?;
    let mut undone = Vec::new();
    for row in &rows {
        let key = Uuid::try_parse(row.get("unit_key")).context("reading the key of a unit")?;
        let (uow, subject): (i64, String) = (row.get("uow"), row.get("subject"));
        let attempts = 1..=row.get::<_, i32>("undone_count");
        undone.extend(attempts.map(|attempt| Past { uow, key, attempt, subject: subject.clone(), document: None }));
    }
    Ok((undone, rows.last().map(|row| row.get("uow"))))
}

/// The attempts in flight with a part in this board: unit and attempt.
///
/// # Errors
/// Postgres is away.
pub async fn in_flight(client: &Client, board: &str) -> Result<Vec<(i64, i32)>> {
    let query = "-- container::past_in_flight
        SELECT uow, attempt FROM units AS u
        WHERE state = 'fanned_out' AND EXISTS (SELECT FROM unit_parts AS p WHERE p.uow = u.uow AND p.destination = $1)";
    let rows = client.query(query, &[&board]).await.context("looking for attempts in flight")?;
    Ok(rows.iter().map(|row| (row.get("uow"), row.get("attempt"))).collect())
}

/// Those of these attempts that are not in flight any more.
///
/// # Errors
/// Postgres is away.
pub async fn ended(client: &Client, attempts: &[(i64, i32)]) -> Result<Vec<Ended>> {
    let (uows, attempts): (Vec<i64>, Vec<i32>) = attempts.iter().copied().unzip();
    let query = "-- container::past_ended
        SELECT u.uow, f.attempt, u.state = 'committed' AND u.attempt = f.attempt AS is_committed, unit_key::text, subject
        FROM unnest($1::bigint[], $2::int[]) AS f (uow, attempt) JOIN units AS u ON u.uow = f.uow
        WHERE NOT (u.state = 'fanned_out' AND u.attempt = f.attempt)";
    let rows = client.query(query, &[&uows, &attempts]).await.context("looking for attempts that have ended")?;
    let ended = rows.iter().map(|row| {
        Ok(Ended {
            uow: row.get("uow"),
            attempt: row.get("attempt"),
            is_committed: row.get("is_committed"),
            key: Uuid::try_parse(row.get("unit_key")).context("reading the key of a unit")?,
            subject: row.get("subject"),
        })
    });
    ended.collect()
}
