//! Makes a restored log usable in its new cluster.
//!
//! The order of the log is stored as transaction ids: `staged_log_records.transaction_id` and the snapshots in
//! `log_batches`. In another cluster (after `pg_dump` and restore, or after `pg_upgrade`) these ids start over, so a
//! comparison with the old ones has no meaning. Streamer, consumer and reaper refuse such a log. `adopt` derives the order
//! for the last time from the old snapshots alone, and stores it again with ids older than every transaction of the new
//! cluster.
//!
//! Offsets, payloads, checkpoints and states do not change (I2, I4), so consumers go on from their checkpoints. Everything,
//! for all partitions, is one transaction: if `adopt` is killed at any point, nothing has changed (I7), and it is run again.

mod order;
mod rebase;

use anyhow::{Context, Result, bail};
use clap::Parser;
use connect::PostgresArgs;
use deadpool_postgres::Transaction;
use pglog::Partition;
use process::LogArgs;
use tokio_postgres::error::SqlState;

pub use rebase::Rebased;

/// Makes a log usable in its new cluster, after a dump was restored or pg_upgrade was run.
#[derive(Debug, Clone, Parser)]
#[command(name = "adopt", version)]
pub struct Config {
    /// The connection to Postgres.
    #[command(flatten)]
    pub postgres: PostgresArgs,

    /// Adopt the log even if it names this cluster as its own. This is needed after a dump was restored into a physical
    /// copy of its cluster. It does no harm to a log of this cluster. Stop streamers and consumers first.
    #[arg(long)]
    pub force: bool,

    /// The log output.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Adopts the log if that is needed, and prints what it did.
///
/// # Errors
/// The log is damaged, or in use, or of another version, or Postgres is away. Nothing was changed.
pub async fn run(config: Config) -> Result<()> {
    match adopt(&config).await? {
        None => println!("nothing to adopt: the log belongs to this cluster"),
        Some(rebased) => {
            for partition in &rebased {
                println!("{partition}");
            }
            println!("the log belongs to this cluster now: start streamers, consumers and reapers");
        }
    }
    Ok(())
}

/// Adopts the log. Returns what it did in each partition, or `None` if the log belongs to this cluster already.
///
/// # Errors
/// As [`run`].
pub async fn adopt(config: &Config) -> Result<Option<Vec<Rebased>>> {
    let mut client = connect::postgres::connect(&config.postgres.database_url, "adopt", || {}).await?;
    if !is_needed(config, &pglog::identity(&client).await?)? {
        return Ok(None);
    }
    let tx = client.transaction().await.context("beginning")?;
    // Copying the log takes a time that grows with the log. The wait for locks keeps its limit.
    tx.batch_execute("SET LOCAL statement_timeout = 0").await.context("setting up the session")?;
    lock(&tx).await?;
    // If another adopt ran at the same time, it held the lock, and its work is done.
    let identity = pglog::identity(&tx).await?;
    if !is_needed(config, &identity)? {
        return Ok(None);
    }
    for partition in identity.partitions.partitions() {
        hold_leadership(&tx, partition).await?;
    }
    let mut rebased = Vec::new();
    let mut last_id = rebase::last_id(&tx).await?;
    for partition in rebase::partitions(&tx).await? {
        let done = rebase::rebase(&tx, partition, last_id).await?;
        last_id += done.record_count + done.waiting_count;
        rebased.push(done);
    }
    rebase::set_last_id(&tx, last_id).await?;
    move_in(&tx, identity.this_cluster).await?;
    tx.commit().await.context("committing")?;
    Ok(Some(rebased))
}

fn is_needed(config: &Config, identity: &pglog::Identity) -> Result<bool> {
    let (found, wanted) = (identity.schema_version, pglog::SCHEMA_VERSION);
    if found != wanted {
        return Err(pglog::Error::SchemaVersion { found, wanted }.into());
    }
    Ok(config.force || !identity.is_of_this_cluster())
}

/// Locks the log. From here on no other session can stage, read or reap. All transactions that staged records have ended,
/// and this transaction sees the records.
async fn lock(tx: &Transaction<'_>) -> Result<()> {
    let locked = tx
        .batch_execute(
            "-- operator::adopt::lock
             LOCK TABLE log_identity, staged_log_records, log_batches IN ACCESS EXCLUSIVE MODE",
        )
        .await;
    match locked {
        Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => bail!(
            "the log is in use: a transaction that stages or reads records was open for 10 s. Stop api, streamers and \
             consumers, or end that transaction, and run adopt again (nothing was changed)"
        ),
        other => other.context("locking the log"),
    }
}

/// Takes the leadership of a partition until the transaction ends. Otherwise a leading streamer might hold a snapshot of the
/// old order, and cut the next batch with it.
async fn hold_leadership(tx: &Transaction<'_>, partition: Partition) -> Result<()> {
    let row = tx
        .query_one(
            "-- operator::adopt::hold_leadership
             SELECT pg_try_advisory_xact_lock($1 # log_key(), $2)",
            &[&pglog::LEADER_LOCK, &partition],
        )
        .await
        .context("asking for the leadership")?;
    if !row.get::<_, bool>(0) {
        bail!("a streamer leads partition {partition}: stop all streamers, and run adopt again (nothing was changed)");
    }
    Ok(())
}

/// Makes this cluster the log's own. The log keeps its id, so that its streams keep their names.
async fn move_in(tx: &Transaction<'_>, this_cluster: i64) -> Result<()> {
    tx.execute(
        "-- operator::adopt::move_in
         WITH moved AS (DELETE FROM log_identity WHERE system_identifier <> $1 RETURNING log_id)
         INSERT INTO log_identity (system_identifier, schema_version, log_id) SELECT $1, $2, max(log_id) FROM moved
         ON CONFLICT (system_identifier) DO UPDATE SET log_id = COALESCE(excluded.log_id, log_identity.log_id)",
        &[&this_cluster, &pglog::SCHEMA_VERSION],
    )
    .await
    .context("noting the new cluster")?;
    Ok(())
}
