//! The consumer's row in `checkpoints`: registering, loading, and the compare-and-set that fences a second process
//! under the same name (I5).

use anyhow::{Context, Result, bail, ensure};
use tokio_postgres::{Client, Transaction};

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

/// The offset up to which the consumer's state is valid, `None` if no such consumer is registered.
pub(crate) async fn find(tx: &Transaction<'_>, name: &str, partition: i32) -> Result<Option<i64>> {
    let row = tx
        .query_opt(
            "-- consumer::checkpoint::find
             SELECT last_offset FROM checkpoints WHERE name = $1 AND partition = $2",
            &[&name, &partition],
        )
        .await
        .context("loading the checkpoint")?;
    Ok(row.map(|row| row.get(0)))
}

/// Registers a consumer that starts at the beginning of the log. From the commit on, no record is deleted before the
/// consumer has passed it (I8).
pub(crate) async fn register(tx: &Transaction<'_>, name: &str, partition: i32) -> Result<()> {
    pglog::hold_reaping(tx).await.context("registering")?;
    tx.execute(
        "-- consumer::checkpoint::register
         INSERT INTO checkpoints (name, partition) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        &[&name, &partition],
    )
    .await
    .context("registering")?;
    Ok(())
}

/// Moves the checkpoint from `old_offset` to `new_offset`, if it is still there. `false` means that another process runs
/// under this name: nothing of this transaction may be committed.
pub(crate) async fn advance(
    tx: &Transaction<'_>,
    name: &str,
    partition: i32,
    old_offset: i64,
    new_offset: i64,
    counts: Counts,
) -> Result<bool> {
    assert!(new_offset >= old_offset, "a checkpoint never goes back: {old_offset} to {new_offset}");
    let moved_count = tx
        .execute(
            "-- consumer::checkpoint::advance
             UPDATE checkpoints
             SET last_offset = $4, duplicate_count = duplicate_count + $5, healed_count = healed_count + $6,
                 rejected_count = rejected_count + $7, crash_count = crash_count + $8, updated_at = now()
             WHERE name = $1 AND partition = $2 AND last_offset = $3",
            &[
                &name,
                &partition,
                &old_offset,
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

/// Registers `name` with state and checkpoint of `source`, as one snapshot has them: the way to start a consumer when
/// the records before are reaped.
///
/// # Errors
/// There is no `source`, or `name` is registered already, or Postgres is away.
pub async fn copy(client: &mut Client, source: &str, name: &str, partition: i32) -> Result<i64> {
    let tx = client.transaction().await.context("beginning")?;
    pglog::hold_reaping(&tx).await.context("registering")?;
    let row = tx
        .query_opt(
            "-- consumer::checkpoint::copy
             WITH source AS (
                 SELECT last_offset, total_distance_mm, ride_count, digest
                 FROM checkpoints JOIN consumer_states USING (name, partition) WHERE name = $1 AND partition = $3
             ), checkpoint AS (
                 INSERT INTO checkpoints (name, partition, last_offset) SELECT $2, $3, last_offset FROM source
                 ON CONFLICT DO NOTHING RETURNING last_offset
             ), state AS (
                 INSERT INTO consumer_states (name, partition, total_distance_mm, ride_count, digest)
                 SELECT $2, $3, total_distance_mm, ride_count, digest FROM source
                 WHERE EXISTS (SELECT FROM checkpoint)
             )
             SELECT source.last_offset, checkpoint.last_offset FROM source LEFT JOIN checkpoint ON true",
            &[&source, &name, &partition],
        )
        .await
        .context("copying the state")?;
    match row.map(|row| (row.get::<_, i64>(0), row.get::<_, Option<i64>>(1))) {
        None => bail!("no consumer {source:?} with a state is registered in partition {partition}"),
        Some((_, None)) => bail!("consumer {name:?} is registered already: --unregister it first"),
        Some((_, Some(last_offset))) => {
            tx.commit().await.context("committing the copy")?;
            Ok(last_offset)
        }
    }
}
