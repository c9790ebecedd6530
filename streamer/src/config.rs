//! The streamer's flags and environment variables.

use clap::Parser;
use common::fault::{FaultArgs, Planned};
use connect::PostgresArgs;
use process::ProcessArgs;
use stream::StreamArgs;

use crate::fault::Fault;

/// Fixes the order of staged records and appends them to the Redis Stream.
#[derive(Debug, Clone, Parser)]
#[command(name = "streamer", version)]
pub struct Config {
    /// Where Postgres is.
    #[command(flatten)]
    pub postgres: PostgresArgs,

    /// Where the stream is.
    #[command(flatten)]
    pub stream: StreamArgs,

    /// Injected double-sends.
    #[command(flatten)]
    pub fault: FaultArgs,

    /// For chaos and tests: FAULT:N injects this fault into every batch from the Nth on.
    #[arg(long, hide = true)]
    pub inject: Option<Planned<Fault>>,

    /// For chaos and tests: publish without asking whether another streamer leads.
    #[arg(long, hide = true)]
    pub lead_without_lock: bool,

    /// Exit with status 0 once nothing is left to publish.
    #[arg(long)]
    pub drain: bool,

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}
