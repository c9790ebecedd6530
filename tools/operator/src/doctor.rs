//! Checks both servers and the log. It says what is wrong, what that leads to, and how to fix it. It changes nothing.
//!
//! Each check is a small function that returns a [`Finding`]. If a check is not allowed to look (a managed Redis may forbid
//! CONFIG, and Postgres hides the transactions of other roles), its finding is a warning, because the state is unknown.

mod bookings;
mod clocks;
mod container;
mod finding;
mod grants;
mod history;
mod log;
mod postgres_server;
mod postgres_session;
mod privileges;
mod redis_server;
mod stream_end;
mod transactions;
mod vacuum;
mod wallets;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use connect::PostgresArgs;
use deadpool_postgres::ClientWrapper as Client;
use payments::StripeArgs;
use redis::aio::MultiplexedConnection;
use stream::StreamArgs;
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
pub async fn run(config: &Config) -> bool {
    let findings = examine(config).await;
    if config.json {
        println!("{}", serde_json::to_string_pretty(&findings).expect("findings are plain text"));
    } else {
        for finding in &findings {
            println!("{}", one_line(&finding.to_string()));
        }
    }
    findings.iter().all(|finding| finding.verdict != Verdict::Fail)
}

/// Runs all checks. Without a connection to a server, it leaves out the checks of that server.
pub async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let redis = stream::redis::connect(config.stream.redis_url.first()).await;
    let mut redis = redis_server::reachable(redis, &mut findings);
    if let Some(redis) = &mut redis {
        redis_server::check(redis, &mut findings).await;
    }
    let postgres = connect::postgres::connect(&config.postgres.database_url, "doctor", || {}).await;
    let postgres = postgres_server::reachable(postgres, &mut findings);
    if let Some(postgres) = &postgres {
        postgres_server::check(postgres, &mut findings).await;
        findings.extend(postgres_session::check(config).await);
        transactions::check(postgres, config, &mut findings).await;
        privileges::check(postgres, config.role.as_ref(), &mut findings).await;
        findings.push(vacuum::check(postgres, config).await);
        log::check(postgres, config, &mut findings).await;
        bookings::check(postgres, config, &mut findings).await;
        wallets::check(postgres, config, &mut findings).await;
        container::check(postgres, config, &mut findings).await;
    }
    if let Some(redis) = &mut redis {
        stream_end::check(redis, postgres.as_ref(), config, &mut findings).await;
    }
    if let Some(postgres) = &postgres {
        clocks::check(postgres, redis.as_mut(), &mut findings).await;
    }
    findings
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
