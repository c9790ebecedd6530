//! Checks both servers and the log. It says what is wrong, what that leads to, and how to fix it. It changes nothing.
//!
//! Each check is a small function that returns a [`Finding`]. If a check is not allowed to look (a managed Redis may forbid
//! CONFIG, and Postgres hides the transactions of other roles), its finding is a warning, because the state is unknown.
//!
//! If the log has several partitions, or Redis is a cluster, a check looks at each partition or node. It tells what is wrong with
//! which of them; if nothing is, it has one finding.

mod bookings;
mod clocks;
mod container;
mod finding;
mod grants;
mod history;
mod leaders;
mod log;
mod partitions;
mod postgres_server;
mod postgres_session;
mod privileges;
mod redis_cluster;
mod redis_node;
mod redis_nodes;
mod redis_server;
mod streams;
mod transactions;
mod vacuum;
mod wallets;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use common::stay_down::StayDown;
use connect::PostgresArgs;
use deadpool_postgres::ClientWrapper as Client;
use payments::StripeArgs;
use pglog::{Partition, PartitionCount};
use redis::aio::MultiplexedConnection;
use stream::{Stream, StreamArgs};
use wallet::WalletsArgs;

use crate::plain::one_line;

pub use finding::{Finding, Verdict};
pub use privileges::Role;

/// Checks Postgres, Redis and the log; exits with 0 if nothing fails (there may be warnings), with 1 otherwise.
#[derive(Debug, Clone, Parser)]
#[command(name = "doctor", version)]
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

    /// The payment processor. It is checked if there is a key.
    #[command(flatten)]
    pub stripe: StripeArgs,

    /// The file that declares resources and destinations of the container. It is checked if it is given.
    #[arg(long = "config", env = "CONTAINER_CONFIG", value_name = "FILE")]
    pub container_config: Option<PathBuf>,

    /// Check the privileges that this process needs. Without it, those that all processes together need.
    #[arg(long = "for", value_name = "PROCESS")]
    pub role: Option<Role>,

    /// Warn of transactions that are open for longer than this, and of consumers that have not moved for as long.
    #[arg(long, default_value = "1m", value_parser = humantime::parse_duration)]
    pub patience: Duration,

    /// Print a JSON array of findings instead of lines.
    #[arg(long)]
    pub json: bool,
}

/// Prints every finding. Returns whether nothing failed.
///
/// # Errors
/// The log does not have a partition that was asked for.
pub async fn run(config: &Config) -> Result<bool> {
    let findings = examine(config).await?;
    if config.json {
        println!("{}", serde_json::to_string_pretty(&findings).expect("findings are plain text"));
    } else {
        for finding in &findings {
            println!("{}", one_line(&finding.to_string()));
        }
    }
    Ok(findings.iter().all(|finding| finding.verdict != Verdict::Fail))
}

/// Runs all checks. Without a connection to a server, it leaves out the checks of that server.
///
/// # Errors
/// As [`run`].
pub async fn examine(config: &Config) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut nodes = redis_nodes::open(&config.stream.redis_url, &mut findings).await;
    let postgres = connect::postgres::connect(&config.postgres.database_url, "doctor", || {}).await;
    let postgres = postgres_server::reachable(postgres, &mut findings);
    let log = Log::of(postgres.as_ref(), config).await?;
    if let Some(postgres) = &postgres {
        postgres_server::check(postgres, &mut findings).await;
        findings.extend(postgres_session::check(config).await);
        transactions::check(postgres, config, &mut findings).await;
        privileges::check(postgres, config.role.as_ref(), &mut findings).await;
        findings.push(vacuum::check(postgres, config, &log).await);
        log::check(postgres, config, &log, &mut findings).await;
        bookings::check(postgres, config, &mut findings).await;
        wallets::check(postgres, config, &log, &mut findings).await;
        container::check(postgres, config, &mut findings).await;
    }
    if !nodes.is_empty() {
        streams::check(postgres.as_ref(), config, &log, &mut findings).await;
    }
    if nodes.iter().any(|node| node.name.is_some()) {
        findings.push(redis_cluster::stream_name(&log));
    }
    if let Some(postgres) = &postgres {
        clocks::check(postgres, &mut nodes, &mut findings).await;
    }
    Ok(findings)
}

/// The log, and the part of it that is checked.
struct Log {
    count: PartitionCount,
    /// The partitions that are checked.
    partitions: Vec<Partition>,
    /// The names of the streams.
    stream: Stream,
}

impl Log {
    /// If Postgres does not tell, because it is away or has no tables, a log of one partition.
    async fn of(postgres: Option<&Client>, config: &Config) -> Result<Self> {
        let identity = match postgres {
            Some(postgres) => pglog::identity(postgres).await.ok(),
            None => None,
        };
        let count = identity.as_ref().map_or(PartitionCount::ONE, |identity| identity.partitions);
        let partitions = match &identity {
            Some(_) => config.stream.partitions.of(count).map_err(|unknown| StayDown(unknown.into()))?,
            None => vec![Partition::FIRST],
        };
        let log_id = identity.and_then(|identity| identity.log_id);
        Ok(Self { count, partitions, stream: Stream { name: config.stream.stream_name.clone(), log_id } })
    }

    fn is_cut(&self) -> bool {
        self.count != PartitionCount::ONE
    }

    /// The findings of one check in all partitions: those that are not well, each with its partition; if all are well, one.
    fn gather(&self, found: Vec<(Partition, Finding)>) -> Vec<Finding> {
        if !self.is_cut() {
            return found.into_iter().map(|(_, finding)| finding).collect();
        }
        let (well, unwell): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|(_, finding)| finding.verdict == Verdict::Ok);
        if unwell.is_empty() {
            let count = well.len();
            let one = well.into_iter().next().map(|(partition, finding)| {
                Finding::ok(
                    finding.check,
                    format!("well in {count} partitions; in partition {partition}: {}", finding.what),
                )
            });
            return one.into_iter().collect();
        }
        unwell.into_iter().map(|(partition, finding)| finding.at(&format!("partition {partition}"))).collect()
    }

    /// Partitions in words, with a space before them: ` in the partitions 0, 3`; nothing if the log has only one.
    fn places(&self, partitions: &[Partition]) -> String {
        if !self.is_cut() {
            return String::new();
        }
        format!(" in {}", named(partitions))
    }
}

/// Partitions in words: `the partitions 0, 3`.
fn named(partitions: &[Partition]) -> String {
    let numbers: Vec<String> = partitions.iter().map(Partition::to_string).collect();
    let noun = if partitions.len() == 1 { "partition" } else { "the partitions" };
    format!("{noun} {}", numbers.join(", "))
}

/// The only row of a query's result.
async fn ask(client: &Client, query: &str) -> Result<tokio_postgres::Row> {
    Ok(client.query_one(query, &[]).await?)
}

/// One setting of Redis. `None`: CONFIG is forbidden, or the setting is unknown.
async fn redis_setting(redis: &mut MultiplexedConnection, name: &str) -> Option<String> {
    let pairs: Vec<String> = redis::cmd("CONFIG").arg("GET").arg(name).query_async(redis).await.ok()?;
    pairs.into_iter().nth(1)
}
