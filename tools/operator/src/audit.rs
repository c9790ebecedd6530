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
//!
//! Each partition is compared by itself. Then all together: the sums of the consumers (P3), the partitions of the keys (P1), and
//! the tables, whose records may be in any partition.

mod archive;
mod distance;
mod documents;
mod entries;
mod extent;
mod keys;
mod log;
mod payments;
mod registered;
mod report;
mod retained;
mod sums;
mod units;
mod wallets;

use std::time::Duration;

use ::payments::{Stripe, StripeArgs};
use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use common::stay_down::StayDown;
use connect::PostgresArgs;
use pglog::{Partition, Partitions};
use process::LogArgs;
use stream::StreamArgs;
use tokio_postgres::IsolationLevel;
use wallet::WalletsArgs;

pub use report::{
    ConsumerLine, DocumentsLine, HistoryLine, PartitionLine, PaymentsLine, Report, RidesLine, StreamLine, SumLine,
    TotalLine, UnitsLine, WalletsLine,
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

    /// Audit all partitions, also if PARTITIONS names some.
    #[arg(long, hide = true)]
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
    let identity = pglog::prepare_session(&client).await.context("setting up the session")?;
    let (count, stream) = (identity.partitions, config.stream.stream(&identity));
    let all: Vec<Partition> = count.partitions().collect();
    let wanted = if config.all_partitions { &Partitions::All } else { &config.stream.partitions };
    let audited = wanted.of(count).map_err(|unknown| StayDown(unknown.into()))?;
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
    let mut logged = Some(distance::Logged::default());
    for partition in &audited {
        report.enter(*partition, count);
        // The stream is read page by page while the transaction is open. A second pass over the log would cost more than
        // a read-only snapshot that is held a little longer.
        let mut comparison = None;
        if is_stream_there {
            comparison = entries::Comparison::open(config, stream.key(*partition), &mut report).await;
            // The other streams of a cluster may be on nodes that are there.
            is_stream_there = comparison.is_some() || config.stream.redis_url.is_cluster();
        }
        let found = log::audit(&tx, (*partition, count), config.from, comparison.as_mut(), &mut report).await?;
        report.streams.extend(comparison.map(entries::Comparison::into_line));
        logged = logged.zip(found).map(|(sum, found)| sum.plus(found));
    }
    report.leave();
    wallets::audit(&tx, &all, config.from, &mut report).await?;
    units::audit(&tx, &all, config.from, &mut report).await?;
    keys::audit(&tx, &identity, config.from, &mut report).await?;
    if audited != all {
        report.note("rides were not compared: their records are in all partitions (--partitions all)".to_owned());
    } else if let Some(logged) = logged {
        distance::compare_rides(&tx, logged, &mut report).await?;
        sums::compare(&tx, count, &mut report).await?;
    } else {
        report.note("rides were not compared: the log could not be read to its head".to_owned());
    }
    tx.rollback().await.context("ending the snapshot")?;
    if !config.no_stream {
        documents::audit(&client, config, count, &mut report).await?;
    }
    if let Some(stripe) = stripe {
        payments::audit(&client, &stripe, config.since, &mut report).await?;
    }
    Ok(report)
}
