//! Makes a restored log at home in its new cluster.
//!
//! The order of the log is written in transaction ids: `staged_log_records.transaction_id` and the snapshots in
//! `log_batches`. In another cluster (after `pg_dump`, after `pg_upgrade`) these ids start over, and a comparison with
//! them means nothing. Streamer, consumer and reaper refuse such a log. `adopt` reads the old order once more, from the
//! old snapshots alone, and writes it down again with ids that are older than every transaction here.
//!
//! Offsets, payloads, checkpoints and states stay what they are (I2, I4), so consumers go on where they were. All of it
//! is one transaction: killed at any point, nothing has happened (I7).

mod order;
mod rebase;

use anyhow::{Context, Result, bail};
use clap::Parser;
use connect::PostgresArgs;
use deadpool_postgres::Transaction;
use process::LogArgs;
use tokio_postgres::error::SqlState;

pub use rebase::Rebased;

/// Makes a log that was restored from a dump, or upgraded with pg_upgrade, at home in its new cluster.
#[derive(Debug, Clone, Parser)]
#[command(name = "adopt", version)]
pub struct Config {
    /// Where Postgres is.
    #[command(flatten)]
    pub postgres: PostgresArgs,

    /// Adopt a log that says it is of this cluster: after a dump was restored into a physical copy of the cluster that it
    /// came from. Does no harm to a log that really is; stop streamers and consumers first.
    #[arg(long)]
    pub force: bool,

    /// What is logged.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Adopts the log, or says that there is nothing to adopt, and prints what it did.
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

/// Adopts the log. Returns what was done in each partition, or `None` if there was nothing to do.
///
/// # Errors
/// As [`run`].
pub async fn adopt(config: &Config) -> Result<Option<Vec<Rebased>>> {
    let mut client = connect::postgres::connect(&config.postgres.database_url, "adopt", || {}).await?;
    if !is_needed(config, &pglog::identity(&client).await?)? {
        return Ok(None);
    }
    let tx = client.transaction().await.context("beginning")?;
    // It may take as long as it takes to copy the log. The wait for locks keeps its bound.
    tx.batch_execute("SET LOCAL statement_timeout = 0").await.context("setting up the session")?;
    lock(&tx).await?;
    // Two may have been started at once; the second finds the work done.
    let identity = pglog::identity(&tx).await?;
    if !is_needed(config, &identity)? {
        return Ok(None);
    }
    let mut rebased = Vec::new();
    let mut last_id = rebase::last_id(&tx).await?;
    for partition in rebase::partitions(&tx).await? {
        hold_leadership(&tx, partition).await?;
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

/// From here on nobody stages, reads or reaps. Transactions that staged something have ended: what they did counts.
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

/// A streamer that leads may hold a snapshot of the old order in its hands, on its way to the next batch.
async fn hold_leadership(tx: &Transaction<'_>, partition: i32) -> Result<()> {
    let row = tx
        .query_one(
            "-- operator::adopt::hold_leadership
             SELECT pg_try_advisory_xact_lock($1, $2)",
            &[&pglog::LEADER_LOCK, &partition],
        )
        .await
        .context("asking for the leadership")?;
    if !row.get::<_, bool>(0) {
        bail!("a streamer leads partition {partition}: stop all streamers, and run adopt again (nothing was changed)");
    }
    Ok(())
}

async fn move_in(tx: &Transaction<'_>, this_cluster: i64) -> Result<()> {
    tx.execute(
        "-- operator::adopt::move_in
         DELETE FROM log_identity WHERE system_identifier <> $1",
        &[&this_cluster],
    )
    .await
    .context("forgetting the old cluster")?;
    tx.execute(
        "-- operator::adopt::move_in
         INSERT INTO log_identity (system_identifier, schema_version) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        &[&this_cluster, &pglog::SCHEMA_VERSION],
    )
    .await
    .context("remembering the new cluster")?;
    Ok(())
}
