//! The consumer's row in `checkpoints`, which holds its checkpoint and its state: loading it, and moving both by
//! compare-and-set (I5).
//!
//! The compare-and-set fences a second process of the same name and the replay of a dead letter: whichever commits first
//! makes the other start over.

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Partition, Session};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::fold::{CheckpointKey, FoldId};
use crate::letters::Letters;
use crate::place::Place;
use crate::vouch::Tokens;

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
}

impl Registration {
    /// From a row with the columns `last_offset, generation, fold, fold_version, state`.
    fn from_row(row: &Row) -> Self {
        let checkpoint = Checkpoint { last_offset: row.get(0), generation: row.get(1) };
        let fold = row.get::<_, Option<String>>(2).zip(row.get(3));
        Self { checkpoint, fold, state: row.get(4) }
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

/// A move of a checkpoint.
#[derive(Debug)]
pub(crate) struct Advance<'a> {
    /// The checkpoint that must be there.
    pub old: Checkpoint,
    /// The offset that it moves to.
    pub new_offset: i64,
    /// The state at the new offset. `None`: it is the old one, or the fold has rows.
    pub state: Option<String>,
    /// Added to the counts of the row.
    pub counts: Counts,
    /// Tokens that Postgres must vouch for.
    pub tokens: Tokens,
    /// Records that the state lacks.
    pub letters: Letters<'a>,
}

/// Moves checkpoint and state by one statement. `$1` and `$2` are the key, `$3` and `$4` the old checkpoint, `$11` to `$13` the
/// tokens that must be those of the records' batches. It returns the place of the new row; no row if nothing was moved.
macro_rules! advance_statement {
    ($condition:literal, $letters:literal) => {
        concat!(
            "-- consumer::checkpoint::advance
             WITH moved AS (
                 UPDATE checkpoints
                 SET last_offset = $5, duplicate_count = duplicate_count + $6, healed_count = healed_count + $7,
                     rejected_count = rejected_count + $8, crash_count = crash_count + $9,
                     state = COALESCE($10::text::fold_state, state), updated_at = now()
                 WHERE name = $1 AND partition = $2 AND last_offset = $3 AND generation = $4
                   AND NOT EXISTS (
                       SELECT FROM unnest($11::bigint[], $12::bigint[], $13::bigint[])
                                   AS read (first_offset, last_offset, token)
                       WHERE NOT EXISTS (
                           SELECT FROM (SELECT first_offset + record_count - 1 AS last_offset, token FROM log_batches
                                        WHERE partition = $2 AND first_offset <= read.first_offset
                                        ORDER BY first_offset DESC LIMIT 1) AS batch
                           WHERE batch.last_offset >= read.last_offset AND batch.token = read.token))",
            $condition,
            " RETURNING ctid)",
            $letters,
            " SELECT ctid::text FROM moved"
        )
    };
}

const ADVANCE: &str = advance_statement!("", "");
const ADVANCE_AT_PLACE: &str = advance_statement!(" AND ctid = $14::text::tid", "");
const ADVANCE_WITH_LETTERS: &str = advance_statement!(
    "",
    ", letters AS (
         INSERT INTO dead_letters (name, partition, record_offset, object, action, data, reason)
         SELECT $1, $2, letter.* FROM unnest($14::bigint[], $15::text[], $16::text[], $17::text[], $18::text[]) AS letter
         WHERE EXISTS (SELECT FROM moved))"
);

impl Advance<'_> {
    /// `$3` to `$13`.
    fn params(&self) -> [&(dyn ToSql + Sync); 11] {
        let Self { old, new_offset, state, counts, tokens, .. } = self;
        assert!(*new_offset >= old.last_offset, "a checkpoint never goes back: {old:?} to {new_offset}");
        [
            &old.last_offset,
            &old.generation,
            new_offset,
            &counts.duplicate_count,
            &counts.healed_count,
            &counts.rejected_count,
            &counts.crash_count,
            state,
            &tokens.first_offsets,
            &tokens.last_offsets,
            &tokens.tokens,
        ]
    }

    /// Moves checkpoint and state, and writes the dead letters, by one statement. Outside of a transaction the statement
    /// commits. `false` means that nothing was done: another process has changed checkpoint or state, or Postgres does not
    /// vouch for the tokens. `place` tells where the row is, and learns where it is now.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn execute(&self, client: &Client, key: &CheckpointKey, place: &mut Place) -> Result<bool> {
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![&key.name, &key.partition];
        params.extend(self.params());
        if !self.letters.is_empty() {
            params.extend(self.letters.params());
            let row = client.query_opt(ADVANCE_WITH_LETTERS, &params).await.context("moving the checkpoint")?;
            place.forget();
            return Ok(row.is_some());
        }
        let known = place.known();
        if let Some(known) = &known {
            params.push(known);
            let row = client.query_opt(ADVANCE_AT_PLACE, &params).await.context("moving the checkpoint")?;
            params.pop();
            if let Some(row) = row {
                place.note(row.get(0));
                return Ok(true);
            }
            // Every change moves a row to another place, and so does VACUUM FULL: look it up by its key now.
        }
        let look_up = place.begin_look_up();
        let row = client.query_opt(ADVANCE, &params).await.context("moving the checkpoint")?;
        let Some(row) = row else { return Ok(false) };
        place.end_look_up(look_up, row.get(0));
        Ok(true)
    }
}

/// Removes the consumer with its state, its dead letters and the rows that reference its checkpoint. It holds back the reaper
/// no longer. Returns the name of its fold, if the row is not older than the column for it.
///
/// # Errors
/// There is no such consumer, or Postgres is away.
pub async fn unregister(client: &Client, name: &str, partition: Partition) -> Result<Option<String>> {
    let row = client
        .query_opt(
            "-- consumer::checkpoint::unregister
             DELETE FROM checkpoints WHERE name = $1 AND partition = $2 RETURNING fold",
            &[&name, &partition],
        )
        .await
        .context("unregistering")?;
    let row = row.with_context(|| format!("no consumer {name:?} is registered in partition {partition}"))?;
    Ok(row.get(0))
}

/// Whether any consumer with this fold is registered.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn has_fold(session: &impl Session, fold: FoldId, partition: Partition) -> Result<bool> {
    let sql = "-- consumer::checkpoint::has_fold
         SELECT EXISTS (SELECT FROM checkpoints WHERE partition = $1 AND fold = $2)";
    let row = session.query_one(sql, &[&partition, &fold.name]).await.context("looking for consumers of the fold")?;
    Ok(row.get(0))
}
