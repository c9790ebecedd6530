//! The consumer's row in `checkpoints`, which holds its checkpoint and its state: loading it, and moving both by
//! compare-and-set (I5).
//!
//! The compare-and-set fences a second process of the same name and the replay of a dead letter: whichever commits first
//! makes the other start over.

mod advance;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Partition, Partitions, Session};
use tokio_postgres::Row;

use crate::fold::{CheckpointKey, FoldId};
pub(crate) use advance::{Advance, Home, advance_all};

/// Events since the last commit, counted for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries skipped because their offset was already passed.
    pub duplicate_count: i64,
    /// Records read from Postgres because the stream lacked them.
    pub healed_count: i64,
    /// Stream entries that are not of this log.
    pub rejected_count: i64,
    /// Injected crashes survived.
    pub crash_count: i64,
}

/// The part of the row that the state in memory belongs to. The state may be committed only while the row still says the
/// same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// The state reflects the records 1 … last_offset.
    pub last_offset: i64,
    /// Rises when the state changes and the offset does not: a dead letter was replayed.
    pub generation: i64,
}

/// The whole row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registration {
    pub checkpoint: Checkpoint,
    /// Name and version of the fold. `None`: the row is older than this column.
    pub fold: Option<(String, i32)>,
    /// `None`: the fold has rows of its own.
    pub state: Option<String>,
    /// Whether the state is in a database of its own, and this row only says how far it is.
    pub is_elsewhere: bool,
    /// The token of the batch with the last record, where that is kept; 0 elsewhere.
    pub token: i64,
}

impl Registration {
    /// From a row with the columns `last_offset, generation, fold, fold_version, state`.
    pub fn from_row(row: &Row) -> Self {
        let checkpoint = Checkpoint { last_offset: row.get(0), generation: row.get(1) };
        let fold = row.get::<_, Option<String>>(2).zip(row.get(3));
        Self { checkpoint, fold, state: row.get(4), is_elsewhere: false, token: 0 }
    }
}

/// The row that was committed last; `None` if no such consumer is registered.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn find(session: &impl Session, key: &CheckpointKey) -> Result<Option<Registration>> {
    let row = session
        .query_opt(
            "-- consumer::checkpoint::find
             SELECT last_offset, generation, fold, fold_version, state::text FROM checkpoints
             WHERE name = $1 AND partition = $2",
            &[&key.name, &key.partition],
        )
        .await
        .context("loading the checkpoint")?;
    Ok(row.as_ref().map(Registration::from_row))
}

/// The rows of a consumer in some partitions, where it is registered.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn find_all(
    session: &impl Session,
    name: &str,
    partitions: &[Partition],
) -> Result<BTreeMap<Partition, Registration>> {
    let rows = session
        .query(
            "-- consumer::checkpoint::find_all
             SELECT last_offset, generation, fold, fold_version, state::text, partition, told_token FROM checkpoints
             WHERE name = $1 AND partition = ANY ($2)",
            &[&name, &partitions],
        )
        .await
        .context("loading the checkpoints")?;
    let found = rows.iter().map(|row| {
        let told_token: Option<i64> = row.get(6);
        let (is_elsewhere, token) = (told_token.is_some(), told_token.unwrap_or(0));
        (row.get(5), Registration { is_elsewhere, token, ..Registration::from_row(row) })
    });
    Ok(found.collect())
}

/// As [`find`]. The row cannot change before the transaction ends.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn lock(tx: &impl Session, key: &CheckpointKey) -> Result<Option<Registration>> {
    let row = tx
        .query_opt(
            "-- consumer::checkpoint::lock
             SELECT last_offset, generation, fold, fold_version, state::text FROM checkpoints
             WHERE name = $1 AND partition = $2 FOR UPDATE",
            &[&key.name, &key.partition],
        )
        .await
        .context("locking the checkpoint")?;
    Ok(row.as_ref().map(Registration::from_row))
}

/// Notes the fold of a registration that is older than the column for it.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn note_fold(tx: &impl Session, id: FoldId, key: &CheckpointKey) -> Result<()> {
    tx.execute(
        "-- consumer::checkpoint::note_fold
         UPDATE checkpoints SET fold = $3, fold_version = $4 WHERE name = $1 AND partition = $2 AND fold IS NULL",
        &[&key.name, &key.partition, &id.name, &id.version],
    )
    .await
    .context("noting the fold")?;
    Ok(())
}

/// Removes the consumer from these partitions, with its state, its dead letters and the rows that reference its checkpoints. It
/// holds back the reaper there no longer. Returns the partitions in which it was registered, and the name of its fold, if the rows
/// are not older than the column for it.
///
/// # Errors
/// It is registered in none of them, or Postgres is away.
pub async fn unregister(
    client: &Client,
    name: &str,
    partitions: &[Partition],
) -> Result<(Vec<Partition>, Option<String>)> {
    let removed = remove(client, name, partitions).await?;
    removed.ensure_any(name, partitions)?;
    Ok((removed.partitions, removed.fold))
}

/// The rows that are gone.
pub(crate) struct Removed {
    /// Where the consumer was registered.
    pub partitions: Vec<Partition>,
    /// The name of its fold.
    pub fold: Option<String>,
    /// Whether its state is in a database of its own, and still there.
    pub is_elsewhere: bool,
}

impl Removed {
    /// Fails if the consumer was registered in none of the partitions.
    ///
    /// # Errors
    /// It was not.
    pub fn ensure_any(&self, name: &str, wanted: &[Partition]) -> Result<()> {
        ensure!(!self.partitions.is_empty(), "no consumer {name:?} is registered in {}", in_words(wanted));
        Ok(())
    }
}

/// As [`unregister`], also if it is registered in none of them.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn remove(client: &Client, name: &str, partitions: &[Partition]) -> Result<Removed> {
    let rows = client
        .query(
            "-- consumer::checkpoint::unregister
             DELETE FROM checkpoints WHERE name = $1 AND partition = ANY ($2)
             RETURNING partition, fold, told_token IS NOT NULL",
            &[&name, &partitions],
        )
        .await
        .context("unregistering")?;
    let mut partitions: Vec<Partition> = rows.iter().map(|row| row.get(0)).collect();
    partitions.sort_unstable();
    let (fold, is_elsewhere) = rows.first().map_or((None, false), |row| (row.get(1), row.get(2)));
    Ok(Removed { partitions, fold, is_elsewhere })
}

/// `partition 0`, or `partitions 0,3`.
pub(crate) fn in_words(partitions: &[Partition]) -> String {
    let word = if partitions.len() == 1 { "partition" } else { "partitions" };
    format!("{word} {}", Partitions::Only(partitions.to_vec()))
}

/// Whether any consumer with this fold is registered.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn has_fold(session: &impl Session, fold: FoldId) -> Result<bool> {
    let sql = "-- consumer::checkpoint::has_fold
         SELECT EXISTS (SELECT FROM checkpoints WHERE fold = $1)";
    let row = session.query_one(sql, &[&fold.name]).await.context("looking for consumers of the fold")?;
    Ok(row.get(0))
}
