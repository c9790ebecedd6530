//! `audit`: does everything that is derived from the log agree with the log, and the log with the rides?
//!
//! One pass over the retained records, in one REPEATABLE READ transaction: all figures are of one snapshot, so the audit
//! may run while everything else does. With READ COMMITTED each query would see another moment, and a ride that is
//! written meanwhile would look like a difference. It writes nothing, locks nothing, and holds one page in memory.
//!
//! ```text
//! baseline's state ──▶ + retained records, folded again ──▶ = each consumer's state at its checkpoint
//!                                                       └─▶ at the head, + staged records = rides
//! ```
//!
//! A consumer's dead letters are what its state lacks on purpose, so they are taken into account.

mod entries;
mod ledger;
mod letters;
mod log;
mod report;
mod rides;

use anyhow::{Context, Result};
use clap::Parser;
use connect::PostgresArgs;
use deadpool_postgres::Transaction;
use process::LogArgs;
use stream::StreamArgs;
use tokio_postgres::IsolationLevel;

pub use report::{ConsumerLine, PartitionLine, Report, RidesLine, StreamLine};

/// Compares consumers, log, rides and stream. Ends with status 0 if all is equal, and with 1 if something is not.
#[derive(Debug, Clone, Parser)]
#[command(name = "audit", version)]
pub struct Config {
    /// Where Postgres is.
    #[command(flatten)]
    pub postgres: PostgresArgs,

    /// Where the stream is.
    #[command(flatten)]
    pub stream: StreamArgs,

    /// Audit every partition that there is, and not only the one of --partition.
    #[arg(long)]
    pub all_partitions: bool,

    /// Leave the stream alone: audit Postgres only.
    #[arg(long)]
    pub no_stream: bool,

    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,

    /// What is logged.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Audits once.
///
/// # Errors
/// Postgres is away, or has no log. Whatever does not agree is no error: it is in the report.
pub async fn run(config: &Config) -> Result<Report> {
    let mut client = connect::postgres::connect(&config.postgres.database_url, "audit", || {}).await?;
    pglog::prepare_session(&client).await.context("setting up the session")?;
    // Counting all rides may take a while. Whoever started the audit can stop it.
    client.batch_execute("SET statement_timeout = 0").await.context("setting up the session")?;
    let mut report = Report::default();
    let mut is_stream_there = !config.no_stream;
    let tx = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await
        .context("beginning")?;
    let existing = partitions(&tx).await?;
    let audited = if config.all_partitions { existing.clone() } else { vec![config.stream.partition] };
    let mut logged = Some(rides::Logged::default());
    for partition in &audited {
        // Redis is asked while the transaction is open, page by page: a second pass over the log would cost more than a
        // read-only snapshot that lives a little longer.
        let mut stream = None;
        if is_stream_there {
            stream = entries::Comparison::open(config, *partition, &mut report).await;
            is_stream_there = stream.is_some();
        }
        let found = log::audit(&tx, *partition, stream.as_mut(), &mut report).await?;
        report.streams.extend(stream.map(entries::Comparison::into_line));
        logged = logged.zip(found).map(|(sum, found)| sum.plus(found));
    }
    if existing.iter().any(|partition| !audited.contains(partition)) {
        report.note("rides were not compared: they may be in any partition, see --all-partitions".to_owned());
    } else if let Some(logged) = logged {
        rides::audit(&tx, logged, &mut report).await?;
    } else {
        report.note("rides were not compared: the log could not be read to its head".to_owned());
    }
    Ok(report)
}

/// The partitions that there are, in order.
async fn partitions(tx: &Transaction<'_>) -> Result<Vec<i32>> {
    // The staged rows are many: hop from one partition to the next along the primary key.
    let rows = tx
        .query(
            "-- operator::audit::partitions
             WITH RECURSIVE staged (partition) AS (
                 SELECT min(partition) FROM staged_log_records
                 UNION ALL
                 SELECT (SELECT min(r.partition) FROM staged_log_records AS r WHERE r.partition > staged.partition)
                 FROM staged WHERE staged.partition IS NOT NULL
             )
             SELECT partition FROM staged WHERE partition IS NOT NULL
             UNION SELECT partition FROM checkpoints
             UNION SELECT partition FROM log_batches
             ORDER BY 1",
            &[],
        )
        .await
        .context("looking for partitions")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
