//! The configuration.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use connect::tls::TlsArgs;
use process::ProcessArgs;

use crate::points::At;
use crate::spool::SpoolPlace;
use crate::{notices, operate};

/// Stores each request in several destinations, or in none.
#[derive(Debug, Clone, Parser)]
#[command(name = "container", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Config {
    /// Another work than to serve.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The file that declares resources and destinations, for example ops/container.toml
    #[arg(long, env = "CONTAINER_CONFIG", value_name = "FILE", required = true)]
    pub config: Option<PathBuf>,

    /// Check the file and the variables that it names, print the result, and exit. It connects to no server.
    #[arg(long)]
    pub check: bool,

    /// The database, for example postgres://localhost/rocket-rides-log; ?sslmode=verify-full encrypts and verifies
    // A flattened `PostgresArgs` would be required by `--check` too, which needs no server.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_parser = connect::parse_url)]
    #[arg(required_unless_present = "check")]
    pub database_url: Option<tokio_postgres::Config>,

    /// The authorities that are trusted, for Postgres and Redis.
    #[command(flatten)]
    pub tls: TlsArgs,

    /// Where bodies are kept until their units are settled: a folder, or s3://BUCKET/PREFIX
    #[arg(long, env = "CONTAINER_SPOOL", value_name = "PLACE", default_value = ".data/spool")]
    pub container_spool: SpoolPlace,

    /// The address to listen on.
    #[arg(long, env = "CONTAINER_BIND", default_value = "127.0.0.1")]
    pub container_bind: IpAddr,

    /// The port to listen on; 0 takes a free one.
    #[arg(long, env = "CONTAINER_PORT", default_value_t = 5008)]
    pub container_port: u16,

    /// How long a response waits for the verdict. After it, the response is 202.
    #[arg(long, env = "CONTAINER_REPLY_WAIT", default_value = "5s", value_parser = humantime::parse_duration)]
    pub reply_wait: Duration,

    /// How long the outcome of a unit can be asked for, and a request with an Idempotency-Key gets it again.
    #[arg(long, env = "CONTAINER_KEEP_UNITS", default_value = "72h", value_parser = parse_keep_units)]
    pub keep_units: Duration,

    /// For chaos and tests: die by SIGKILL at this step of a unit, POINT or POINT:SUBJECT
    #[arg(long, hide = true)]
    pub die_at: Option<At>,

    /// For tests: stop by SIGSTOP at this step of a unit, once.
    #[arg(long, hide = true)]
    pub stop_at: Option<At>,

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// A client may send its request again for a day. If the unit were forgotten sooner, it would be stored again.
fn parse_keep_units(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(keep) if keep >= Duration::from_secs(24 * 3600) => Ok(keep),
        _ => Err("give a time of at least 24h, for example 72h".to_owned()),
    }
}

/// Another work than to serve.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Receive notices, for development and tests.
    Notices(notices::Config),
    /// Look at units, and decide about those that the container cannot settle.
    Units(Box<operate::Config>),
}

impl Config {
    /// The arguments of every process.
    pub fn process(&self) -> &ProcessArgs {
        match &self.command {
            Some(Command::Notices(config)) => &config.process,
            Some(Command::Units(config)) => &config.process,
            None => &self.process,
        }
    }
}
