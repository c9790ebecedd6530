//! `audit`: compares the consumers' states and the stream with the log, and the log with the rides.
//!
//! It reads the retained records once, in one REPEATABLE READ transaction. All figures come from one snapshot, so the audit
//! may run while other processes write. With READ COMMITTED each query would see another moment, and a ride written in the
//! meantime would look like a difference. The audit writes nothing, locks nothing, and keeps one page in memory.
//!
//! ```text
//! baseline's state ──▶ + retained records, folded again ──▶ = each consumer's state at its checkpoint
//!                                                       └─▶ at the head, + staged records = rides
//! ```
//!
//! A consumer's state lacks its dead letters on purpose, so the audit subtracts them. With `--from start` it begins with the
//! first record instead of the baseline's state, and reads reaped records from the history.
//!
//! A consumer is compared with the fold that its registration names. The audit knows `distance` and `history`, and only lists
//! consumers of other folds.

mod archive;
mod distance;
mod documents;
mod entries;
mod extent;
mod log;
mod payments;
mod registered;
mod report;
mod retained;
mod units;
mod wallets;

use std::time::Duration;

use ::payments::{Stripe, StripeArgs};
use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use connect::PostgresArgs;
use deadpool_postgres::Transaction;
use pglog::Partition;
use process::LogArgs;
use stream::StreamArgs;
use tokio_postgres::IsolationLevel;
use wallet::WalletsArgs;

pub use report::{
    ConsumerLine, DocumentsLine, HistoryLine, PartitionLine, PaymentsLine, Report, RidesLine, StreamLine, TotalLine,
    UnitsLine, WalletsLine,
};

/// Compares consumers, log, rides, wallets, units of the container and stream; with --payments also charges, bookings and receipts. Exits with status 0 if everything is equal, and with 1 otherwise.
#[derive(Debug, Clone, Parser)]
#[command(name = "audit", version)]
pub struct Config {
    /// The connection to Postgres.
    #[command(flatten)]
    pub postgres: PostgresArgs,

    /// The stream.
    #[command(flatten)]
    pub stream: StreamArgs,

    /// The read model of wallets.
    #[command(flatten)]
    pub wallets: WalletsArgs,

    /// The state that the audit counts from.
    #[arg(long, value_enum, default_value_t, value_name = "PLACE")]
    pub from: Origin,

    /// Audit all partitions, and not only that of --partition.
    #[arg(long)]
    pub all_partitions: bool,

    /// Audit Postgres only, and not the stream and the documents of wallets.
    #[arg(long)]
    pub no_stream: bool,

    /// Compare the charges at the payment processor with the bookings and the receipts, too. Needs STRIPE_API_KEY.
    #[arg(long)]
    pub payments: bool,

    /// Compare only the charges of this last time, for example 7d.
    #[arg(long, requires = "payments", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub since: Option<Duration>,

    /// The payment processor.
    #[command(flatten)]
    pub stripe: StripeArgs,

    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,

    /// The log output.
    #[command(flatten)]
    pub log: LogArgs,
}

/// The state that the audit counts from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Origin {
    /// The baseline's state. Consumers behind the baseline are not compared.
    #[default]
    Baseline,
    /// No record. Reaped records are read from the history. All consumers are compared, and so is the baseline.
    Start,
}

/// Audits once.
///
/// # Errors
/// Postgres is away, or has no log. A difference is no error: it is in the report.
pub async fn run(config: &Config) -> Result<Report> {
    let stripe = if config.payments { Some(Stripe::new(&config.stripe)?) } else { None };
    let mut client = connect::postgres::connect(&config.postgres.database_url, "audit", || {}).await?;
    pglog::prepare_session(&client).await.context("setting up the session")?;
    // Counting all rides may take long. The user of the audit can interrupt it.
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
    let audited = if config.all_partitions { existing.clone() } else { vec![config.stream.partition()] };
    let mut logged = Some(distance::Logged::default());
    for partition in &audited {
        // The stream is read page by page while the transaction is open. A second pass over the log would cost more than
        // a read-only snapshot that is held a little longer.
        let mut stream = None;
        if is_stream_there {
            stream = entries::Comparison::open(config, *partition, &mut report).await;
            is_stream_there = stream.is_some();
        }
        let found = log::audit(&tx, *partition, config.from, stream.as_mut(), &mut report).await?;
        report.streams.extend(stream.map(entries::Comparison::into_line));
        logged = logged.zip(found).map(|(sum, found)| sum.plus(found));
    }
    wallets::audit(&tx, &existing, config.from, &mut report).await?;
    units::audit(&tx, &existing, config.from, &mut report).await?;
    if existing.iter().any(|partition| !audited.contains(partition)) {
        report.note("rides were not compared: they may be in any partition, see --all-partitions".to_owned());
    } else if let Some(logged) = logged {
        distance::compare_rides(&tx, logged, &mut report).await?;
    } else {
        report.note("rides were not compared: the log could not be read to its head".to_owned());
    }
    tx.rollback().await.context("ending the snapshot")?;
    if !config.no_stream {
        documents::audit(&client, config, &mut report).await?;
    }
    if let Some(stripe) = stripe {
        payments::audit(&client, &stripe, config.since, &mut report).await?;
    }
    Ok(report)
}

/// All partitions, in order.
async fn partitions(tx: &Transaction<'_>) -> Result<Vec<Partition>> {
    // There are many staged rows, so the query jumps from one partition to the next along the primary key.
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
