//! The beginning of a consumer: at offset 0, or with a copy of a state that another consumer has derived.
//!
//! A copy of a state includes its dead letters, because these records are missing from the state.

use anyhow::{Context, Result, bail, ensure};
use deadpool_postgres::{ClientWrapper as Client, Transaction};
use pglog::Partition;

use crate::checkpoint::{self, Checkpoint};
use crate::dead_letter;
use crate::fold::Fold;

/// The name under which the reaper keeps the state of the records that it deletes. No consumer may have it.
pub const BASELINE: &str = "baseline";

/// Registers a consumer, in the transaction that loads it. It starts with the baseline's state if the baseline has folded
/// any record and the fold keeps such a state; otherwise it starts at offset 0. From the commit on, no record is deleted
/// before the consumer has passed it (I8).
///
/// # Errors
/// Postgres is away.
pub(crate) async fn register<F: Fold>(
    tx: &Transaction<'_>,
    fold: &F,
    name: &str,
    partition: Partition,
) -> Result<Checkpoint> {
    pglog::hold_reaping(tx).await.context("registering")?;
    // The reaper relies on the registration, so it must survive a crash.
    tx.batch_execute("SET LOCAL synchronous_commit TO DEFAULT").await.context("registering")?;
    // If the row is there, another process of this name was faster. Its row is found below.
    if insert(tx, name, partition).await? {
        if name == BASELINE {
            begin_baseline(tx, fold, partition).await?;
        } else if checkpoint::find(tx, BASELINE, partition).await?.is_some_and(|checkpoint| checkpoint.last_offset > 0)
        {
            inherit(tx, fold, BASELINE, name, partition).await?;
        }
    }
    checkpoint::find(tx, name, partition).await?.context("the registration is gone")
}

/// Registers `name` with state, dead letters and checkpoint of `source`, all of one offset. Returns the offset.
///
/// # Errors
/// No consumer `source` has a state of this fold, or `name` is registered already, or Postgres is away.
pub async fn copy<F: Fold>(
    client: &mut Client,
    fold: &F,
    source: &str,
    name: &str,
    partition: Partition,
) -> Result<i64> {
    let tx = client.transaction().await.context("beginning")?;
    pglog::hold_reaping(&tx).await.context("registering")?;
    if !insert(&tx, name, partition).await? {
        bail!("consumer {name:?} is registered already: --unregister it first");
    }
    let Some(last_offset) = inherit(&tx, fold, source, name, partition).await? else {
        bail!("no consumer {source:?} with a state is registered in partition {partition}");
    };
    tx.commit().await.context("committing the copy")?;
    Ok(last_offset)
}

/// Gives the new baseline its state. If the first records of the log are gone, they were reaped by a version that kept no
/// baseline. The slowest consumer that has a state of this fold then becomes the baseline.
async fn begin_baseline<F: Fold>(tx: &Transaction<'_>, fold: &F, partition: Partition) -> Result<()> {
    if pglog::first_retained(tx, partition).await.context("asking what is retained")? == 1 {
        return Ok(());
    }
    let rows = tx
        .query(
            "-- consumer::bootstrap::begin_baseline
             SELECT name FROM checkpoints WHERE partition = $1 AND NOT is_baseline ORDER BY last_offset, name",
            &[&partition],
        )
        .await
        .context("looking for the slowest consumer")?;
    for row in rows {
        if inherit(tx, fold, row.get(0), BASELINE, partition).await?.is_some() {
            break;
        }
    }
    Ok(())
}

/// Inserts the consumer's row. Returns whether it was not there before.
async fn insert(tx: &Transaction<'_>, name: &str, partition: Partition) -> Result<bool> {
    let inserted_count = tx
        .execute(
            "-- consumer::bootstrap::insert
             INSERT INTO checkpoints (name, partition, is_baseline) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            &[&name, &partition, &(name == BASELINE)],
        )
        .await
        .context("registering")?;
    Ok(inserted_count == 1)
}

/// Copies state, dead letters and checkpoint of `source` to `name`, which is registered at offset 0. Returns the offset;
/// `None`, with nothing done, if `source` has no state.
async fn inherit<F: Fold>(
    tx: &Transaction<'_>,
    fold: &F,
    source: &str,
    name: &str,
    partition: Partition,
) -> Result<Option<i64>> {
    // Each of the statements that follow has a snapshot of its own. The lock keeps the source from committing in between,
    // so that checkpoint, state and dead letters are of one offset.
    let row = tx
        .query_opt(
            "-- consumer::bootstrap::inherit
             SELECT last_offset FROM checkpoints WHERE name = $1 AND partition = $2 AND name <> $3 FOR SHARE",
            &[&source, &partition, &name],
        )
        .await
        .context("looking for the consumer to copy")?;
    let Some(row) = row else { return Ok(None) };
    let last_offset: i64 = row.get(0);
    if !fold.copy(tx, source, name, partition).await? {
        return Ok(None);
    }
    dead_letter::copy(tx, source, name, partition).await?;
    let moved_count = tx
        .execute(
            "-- consumer::bootstrap::inherit
             UPDATE checkpoints SET last_offset = $3 WHERE name = $1 AND partition = $2 AND last_offset = 0",
            &[&name, &partition, &last_offset],
        )
        .await
        .context("copying the checkpoint")?;
    ensure!(moved_count == 1, "consumer {name:?} has begun already");
    Ok(Some(last_offset))
}
