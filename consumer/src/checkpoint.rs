//! The consumer's row in `checkpoints`: loading, and the compare-and-set that fences whoever else changes the state:
//! a second process under the same name, or the replay of a dead letter (I5).

use anyhow::{Context, Result, ensure};
use deadpool_postgres::{ClientWrapper as Client, Transaction};
use pglog::Session;

/// What happened since the last commit that is worth counting for people.
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

/// What the state in memory rests on. It may be committed only while the row still says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The state reflects the records 1 … last_offset.
    pub last_offset: i64,
    /// Goes up when the state is changed without the checkpoint: a dead letter was replayed.
    pub generation: i64,
}

/// Where the consumer's committed state stands, `None` if no such consumer is registered.
pub(crate) async fn find(tx: &Transaction<'_>, name: &str, partition: i32) -> Result<Option<Mark>> {
    let row = tx
        .query_opt(
            "-- consumer::checkpoint::find
             SELECT last_offset, generation FROM checkpoints WHERE name = $1 AND partition = $2",
            &[&name, &partition],
        )
        .await
        .context("loading the checkpoint")?;
    Ok(row.map(|row| Mark { last_offset: row.get(0), generation: row.get(1) }))
}

/// Moves the checkpoint from `old` to `new_offset`, if it is still there. `false` means that somebody else has changed
/// checkpoint or state: nothing of this transaction may be committed.
pub(crate) async fn advance(
    tx: &impl Session,
    name: &str,
    partition: i32,
    old: Mark,
    new_offset: i64,
    counts: Counts,
) -> Result<bool> {
    assert!(new_offset >= old.last_offset, "a checkpoint never goes back: {old:?} to {new_offset}");
    let moved_count = tx
        .execute(
            "-- consumer::checkpoint::advance
             UPDATE checkpoints
             SET last_offset = $5, duplicate_count = duplicate_count + $6, healed_count = healed_count + $7,
                 rejected_count = rejected_count + $8, crash_count = crash_count + $9, updated_at = now()
             WHERE name = $1 AND partition = $2 AND last_offset = $3 AND generation = $4",
            &[
                &name,
                &partition,
                &old.last_offset,
                &old.generation,
                &new_offset,
                &counts.duplicate_count,
                &counts.healed_count,
                &counts.rejected_count,
                &counts.crash_count,
            ],
        )
        .await
        .context("moving the checkpoint")?;
    Ok(moved_count == 1)
}

/// Removes the consumer with its state and dead letters, so that it holds back the reaper no longer.
///
/// # Errors
/// There is no such consumer, or Postgres is away.
pub async fn unregister(client: &Client, name: &str, partition: i32) -> Result<()> {
    let removed_count = client
        .execute(
            "-- consumer::checkpoint::unregister
             DELETE FROM checkpoints WHERE name = $1 AND partition = $2",
            &[&name, &partition],
        )
        .await
        .context("unregistering")?;
    ensure!(removed_count == 1, "no consumer {name:?} is registered in partition {partition}");
    Ok(())
}
