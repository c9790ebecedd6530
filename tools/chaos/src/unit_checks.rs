//! The destinations of the containers, compared with the verdicts on their units, with the log, and with all that clients saw
//! (C1 to C4).

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use simulator::Manifest;

use crate::history::History;
use crate::manifest_ledger::{Filed, Seen, is_final};
use crate::unit_records::UnitRecords;
use crate::unit_stores::{self, Attempt, Stores, hash_of, names_in};
use crate::world::World;

/// A row of `units`.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    uow: i64,
    key: String,
    state: String,
    attempt: i32,
    status: Option<i16>,
    subject: String,
    idempotency_key: Option<String>,
    trace_id: Option<u128>,
}

/// Rows and verdicts are one transaction, so they agree in every snapshot (C2).
pub(crate) async fn check_rows(client: &Client, history: &History) -> Result<()> {
    let query = "-- chaos::unit_checks::check_rows
                 SELECT (SELECT count(*) FROM units AS u WHERE u.state = 'committed'
                             AND NOT EXISTS (SELECT FROM manifests AS m WHERE m.uow = u.uow)),
                        (SELECT count(*) FROM manifests AS m WHERE NOT EXISTS
                             (SELECT FROM units AS u WHERE u.uow = m.uow AND u.state = 'committed'))";
    let row = client.query_one(query, &[]).await.context("comparing manifests with units")?;
    let (missing, orphaned): (i64, i64) = (row.get(0), row.get(1));
    if (missing, orphaned) != (0, 0) {
        history.violation(&format!(
            "C2: {missing} committed units have no row in manifests, {orphaned} rows are of no committed unit"
        ));
    }
    Ok(())
}

/// A text about units that are not settled, files that are left in the spool, and a board that is not as the verdicts want it.
/// Empty if there are none. Dead units are made due again.
pub(crate) async fn unfinished(world: &World, client: &Client) -> Result<String> {
    let units = units(client).await?;
    let mut open: BTreeMap<&str, usize> = BTreeMap::new();
    for unit in units.iter().filter(|unit| !is_final(&unit.state)) {
        *open.entry(&unit.state).or_default() += 1;
    }
    if open.contains_key("dead") {
        world.containers.retry_dead(&world.postgres_url).await?;
    }
    let spooled_count = names_in(&world.containers.spooled())?.len();
    let mut texts = Vec::new();
    if !open.is_empty() || spooled_count > 0 {
        texts.push(format!("units are {open:?}, and {spooled_count} files in the spool"));
    }
    texts.extend(wrong_board(&units, &world.containers.ledger.seen(), &unit_stores::board(world).await?));
    Ok(texts.join(", "))
}

/// Compares everything, when nothing changes any more.
pub(crate) async fn check(world: &World, client: &Client, records: &UnitRecords) -> Result<()> {
    check_rows(client, &world.history).await?;
    let (units, stores) = (units(client).await?, Stores::read(world, client).await?);
    for difference in differences(&units, &stores, &world.containers.ledger.seen(), records) {
        world.history.violation(&difference);
    }
    Ok(())
}

async fn units(client: &Client) -> Result<Vec<Unit>> {
    let query = "-- chaos::unit_checks::units
                 SELECT uow, unit_key::text, state, attempt, status, subject, idempotency_key, traceparent::text FROM units";
    let rows = client.query(query, &[]).await.context("reading the units")?;
    let trace_id = |text: Option<&str>| u128::from_str_radix(text?.get(3..35)?, 16).ok();
    let unit = |row: &tokio_postgres::Row| Unit {
        uow: row.get(0),
        key: row.get(1),
        state: row.get(2),
        attempt: row.get(3),
        status: row.get(4),
        subject: row.get(5),
        idempotency_key: row.get(6),
        trace_id: trace_id(row.get(7)),
    };
    Ok(rows.iter().map(unit).collect())
}

/// Every difference between verdicts, destinations, log, and the clients' knowledge.
fn differences(units: &[Unit], stores: &Stores, seen: &Seen, records: &UnitRecords) -> Vec<String> {
    let mut texts = Vec::new();
    let mut by_trace: HashMap<u128, Vec<&Unit>> = HashMap::new();
    for unit in units {
        let filed = unit.trace_id.and_then(|trace_id| seen.filed.get(&trace_id));
        match filed {
            Some(filed) => texts.extend(wrong_unit(unit, filed)),
            None => texts.push(format!("C1: {unit:?} is of no client's request")),
        }
        by_trace.entry(unit.trace_id.unwrap_or_default()).or_default().push(unit);
        let verdict = records.of(unit.uow);
        let told = verdict.map(|verdict| (verdict.state(), verdict.attempt, Some(verdict.status)));
        if told != Some((unit.state.as_str(), unit.attempt, unit.status)) {
            texts.push(format!("I1: {unit:?} has the record {verdict:?}"));
        }
    }
    let known: HashSet<i64> = units.iter().map(|unit| unit.uow).collect();
    texts.extend(records.uows().filter(|uow| !known.contains(uow)).map(|uow| format!("C1: unit {uow} is gone")));
    for (trace_id, filed) in &seen.filed {
        texts.extend(wrong_fate(filed, by_trace.get(trace_id).map(Vec::as_slice).unwrap_or_default()));
    }
    for shown in &seen.shown {
        let unit = by_trace.get(&shown.trace_id).and_then(|units| units.first());
        if unit.is_none_or(|unit| unit.state != "committed" || Some(unit.uow) < shown.min_uow) {
            texts.push(format!("C2: a client read {shown:?}, and that is {unit:?}"));
        }
    }
    texts.extend(wrong_stores(units, stores, seen));
    texts
}

/// A unit is settled, and as its request demands.
fn wrong_unit(unit: &Unit, filed: &Filed) -> Option<String> {
    let Filed { manifest, is_refused, .. } = filed;
    let state = if *is_refused { "rejected" } else { "committed" };
    let is_right = unit.state == state
        && manifest.document["ride_id"].as_i64().is_some_and(|ride_id| unit.subject == format!("{ride_id}"))
        && unit.idempotency_key == manifest.key;
    (!is_right).then(|| format!("C1: {unit:?} is of the request {filed:?}"))
}

/// A request has the units that its responses named, in the states that they told, and not more than it may have.
fn wrong_fate(filed: &Filed, units: &[&Unit]) -> Option<String> {
    let count_max = if filed.manifest.key.is_some() { 1 } else { filed.send_count };
    let is_right = |(uow, state): (&i64, &String)| {
        let unit = units.iter().find(|unit| unit.uow == *uow);
        unit.is_some_and(|unit| !is_final(state) || unit.state == *state)
    };
    let is_right = units.len() <= count_max && filed.told.iter().all(is_right);
    (!is_right).then(|| format!("C1: {filed:?} has the units {units:?}"))
}

/// Each destination has exactly the committed units that it wants (C3).
fn wrong_stores(units: &[Unit], stores: &Stores, seen: &Seen) -> Vec<String> {
    let (mut texts, mut left) = (Vec::new(), stores.clone());
    let mut told: HashSet<Attempt> = left.notices.drain(..).collect();
    for (unit, manifest) in committed(units, seen) {
        let attempt = (unit.key.clone(), unit.attempt);
        if left.rows.remove(&unit.uow).as_ref() != Some(&manifest.document) {
            texts.push(format!("C3: {unit:?} is not in manifests as it was filed"));
        }
        if left.photos.remove(&attempt) != manifest.photo.as_deref().map(hash_of) {
            texts.push(format!("C3: {unit:?} has another photo than was filed"));
        }
        if !told.remove(&attempt) {
            texts.push(format!("C3: the receiver of notices was not told of {unit:?}"));
        }
    }
    texts.extend(left.rows.keys().map(|uow| format!("C3: manifests has a row of unit {uow}, which is not committed")));
    texts.extend(left.photos.keys().map(|of| format!("C3: there is a photo of {of:?}, which is not committed")));
    texts.extend(told.iter().map(|of| format!("C3: the receiver of notices keeps {of:?}, which is not committed")));
    texts.extend(wrong_board(units, seen, &stores.board));
    texts
}

/// The board shows the newest committed unit of each ride.
fn wrong_board(units: &[Unit], seen: &Seen, board: &HashMap<String, i64>) -> Option<String> {
    let mut newest: HashMap<&str, (i64, i64)> = HashMap::new();
    for (unit, manifest) in committed(units, seen) {
        let count = manifest.document["passengers"].as_array().map_or(0, Vec::len) as i64;
        let shown = newest.entry(&unit.subject).or_insert((unit.uow, count));
        *shown = (*shown).max((unit.uow, count));
    }
    let wanted: HashMap<String, i64> = newest.into_iter().map(|(ride, (_, count))| (ride.to_owned(), count)).collect();
    let differs = |ride: &&String| board.get(*ride) != wanted.get(*ride);
    let wrong: HashSet<&String> = board.keys().chain(wanted.keys()).filter(differs).collect();
    let texts =
        wrong.iter().map(|ride| format!("ride {ride} {:?} instead of {:?}", board.get(*ride), wanted.get(*ride)));
    let texts: Vec<String> = texts.collect();
    (!texts.is_empty()).then(|| format!("C3: the board shows for {}", texts.join(", ")))
}

/// The committed units with the manifests that clients filed.
fn committed<'a>(units: &'a [Unit], seen: &'a Seen) -> impl Iterator<Item = (&'a Unit, &'a Manifest)> {
    let committed = units.iter().filter(|unit| unit.state == "committed");
    committed.filter_map(|unit| Some((unit, &seen.filed.get(&unit.trace_id?)?.manifest)))
}

#[cfg(test)]
mod tests;
