//! The configuration.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use connect::PostgresArgs;
use process::ProcessArgs;

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
    #[arg(long, env = "CONTAINER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Check the file and the variables that it names, print the result, and exit. It connects to no server.
    #[arg(long)]
    pub check: bool,

    /// Where Postgres is.
    #[command(flatten)]
    pub postgres: PostgresArgs,

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

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// Another work than to serve.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Receive notices, for development and tests.
    Notices(notices::Config),
    /// Look at units, and decide about those that are dead.
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
