//! Looks at both servers and at the log, and says what is wrong, why it hurts and how to mend it. Changes nothing.
//!
//! One small function a check; each returns a [`Finding`]. A check that cannot look (a managed Redis forbids CONFIG, say)
//! says so and is a warning: not to know is not the same as to be well.

mod clocks;
mod finding;
mod grants;
mod log;
mod postgres_server;
mod postgres_session;
mod privileges;
mod redis_server;
mod stream;
mod transactions;

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use common::config::{PostgresArgs, StreamArgs};
use deadpool_postgres::ClientWrapper as Client;
use redis::aio::MultiplexedConnection;

pub use finding::{Finding, Verdict};
pub use privileges::Role;

/// Checks Postgres, Redis and the log; exits with 0 if nothing fails (there may be warnings), with 1 otherwise.
#[derive(Debug, Clone, Parser)]
#[command(name = "doctor", version)]
pub struct Config {
    #[command(flatten)]
    /// Where Postgres is.
    pub postgres: PostgresArgs,

    #[command(flatten)]
    /// Where the stream is.
    pub stream: StreamArgs,

    /// Whether the role that connects may do what this process does; without it, what all of them do.
    #[arg(long = "for", value_enum, value_name = "PROCESS")]
    pub role: Option<Role>,

    /// How long a transaction may be open, or a consumer stand still, before it is worth a warning.
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
            println!("{finding}");
        }
    }
    findings.iter().all(|finding| finding.verdict != Verdict::Fail)
}

/// Makes every check that can be made.
pub async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let redis = common::redis::connect(&config.stream.redis_url).await;
    let mut redis = redis_server::reachable(redis, &mut findings);
    if let Some(redis) = &mut redis {
        redis_server::check(redis, &mut findings).await;
    }
    let postgres = common::postgres::connect(&config.postgres.database_url, "doctor", || {}).await;
    let postgres = postgres_server::reachable(postgres, &mut findings);
    if let Some(postgres) = &postgres {
        postgres_server::check(postgres, &mut findings).await;
        findings.extend(postgres_session::check(config).await);
        transactions::check(postgres, config, &mut findings).await;
        privileges::check(postgres, config.role, &mut findings).await;
        log::check(postgres, config, &mut findings).await;
    }
    if let Some(redis) = &mut redis {
        stream::check(redis, postgres.as_ref(), config, &mut findings).await;
    }
    if let Some(postgres) = &postgres {
        clocks::check(postgres, redis.as_mut(), &mut findings).await;
    }
    findings
}

/// What the server answers to a question that has one row.
async fn ask(client: &Client, query: &str) -> Result<tokio_postgres::Row> {
    Ok(client.query_one(query, &[]).await?)
}

/// One setting of Redis; `None` where CONFIG is forbidden or the setting unknown.
async fn redis_setting(redis: &mut MultiplexedConnection, name: &str) -> Option<String> {
    let pairs: Vec<String> = redis::cmd("CONFIG").arg("GET").arg(name).query_async(redis).await.ok()?;
    pairs.into_iter().nth(1)
}
