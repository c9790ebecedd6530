//! A unit as its clients see it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use serde::Serialize;

use super::{PartOutcome, State};

/// The state of a unit, for `GET /units/{uow}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Its number.
    pub uow: i64,
    /// Its state.
    pub state: String,
    /// From 1 on.
    pub attempt: i32,
    /// The status of the newest verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<i16>,
    /// Its reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its parts.
    pub parts: Vec<ShownPart>,
    /// The report: each attempt that failed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub report: BTreeMap<i32, Vec<AttemptPart>>,
}

impl Shown {
    /// A new unit that waits for a destination.
    pub fn queued(uow: i64, destinations: &[String]) -> Self {
        let part = |destination: &String| ShownPart {
            destination: destination.clone(),
            state: "pending".to_owned(),
            attempts: 0,
            status: None,
            error: None,
        };
        Self::new(uow, State::Queued, None, destinations.iter().map(part).collect())
    }

    /// A unit that its first attempt has committed.
    pub fn committed(uow: i64, parts: Vec<PartOutcome>) -> Self {
        let part = |part: PartOutcome| ShownPart {
            destination: part.destination,
            state: part.state.to_owned(),
            attempts: 1,
            status: part.status,
            error: part.error,
        };
        Self::new(uow, State::Committed, Some(200), parts.into_iter().map(part).collect())
    }

    /// The first attempt of a unit. Its parts are sorted as [`show`] sorts them.
    fn new(uow: i64, state: State, status: Option<i16>, mut parts: Vec<ShownPart>) -> Self {
        parts.sort_by(|one, other| one.destination.cmp(&other.destination));
        let state = state.name().to_owned();
        Self { uow, state, attempt: 1, status, error: None, parts, report: BTreeMap::new() }
    }
}

/// A part of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownPart {
    /// The destination.
    pub destination: String,
    /// Its state in the newest attempt.
    pub state: String,
    /// The attempts that have ended.
    pub attempts: i32,
    /// The status that the destination gave, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<i16>,
    /// Its reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The outcome of one destination in an attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AttemptPart {
    /// The destination.
    pub destination: String,
    /// The outcome.
    pub state: String,
    /// The status that the destination gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<i16>,
    /// Its reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Reads a unit. `None`: there is none with this number.
///
/// # Errors
/// Postgres is away.
pub async fn show(client: &Client, uow: i64) -> Result<Option<Shown>> {
    // One statement, so that parts and unit are of one moment.
    let rows = client
        .query(
            "-- container::show
             SELECT u.state, u.attempt, u.status, u.error, p.part_attempt, p.destination, p.part_state, p.attempts, p.part_status,
                    p.part_error
             FROM units AS u LEFT JOIN LATERAL (
                 SELECT 0 AS part_attempt, destination, state AS part_state, attempts, status AS part_status, error AS part_error
                 FROM unit_parts WHERE uow = u.uow
                 UNION ALL
                 SELECT attempt, destination, state, 0, status, error FROM unit_reports WHERE uow = u.uow
             ) AS p ON true
             WHERE u.uow = $1 ORDER BY part_attempt, destination COLLATE \"C\"",
            &[&uow],
        )
        .await
        .context("reading a unit")?;
    let Some(first) = rows.first() else { return Ok(None) };
    let (mut parts, mut report) = (Vec::new(), BTreeMap::<i32, Vec<AttemptPart>>::new());
    for row in &rows {
        let Some(attempt) = row.get::<_, Option<i32>>("part_attempt") else { continue };
        let (destination, state) = (row.get("destination"), row.get("part_state"));
        let (status, error) = (row.get("part_status"), row.get("part_error"));
        if attempt == 0 {
            parts.push(ShownPart { destination, state, attempts: row.get("attempts"), status, error });
        } else {
            report.entry(attempt).or_default().push(AttemptPart { destination, state, status, error });
        }
    }
    let (state, attempt) = (first.get("state"), first.get("attempt"));
    Ok(Some(Shown { uow, state, attempt, status: first.get("status"), error: first.get("error"), parts, report }))
}
