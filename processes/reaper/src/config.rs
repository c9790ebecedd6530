//! The configuration.

use std::time::Duration;

use clap::Parser;
use connect::PostgresArgs;
use process::ProcessArgs;
use stream::StreamArgs;

/// Removes records that every registered consumer has passed.
#[derive(Debug, Clone, Parser)]
#[command(name = "reaper", version)]
pub struct Config {
    /// Where Postgres is.
    #[command(flatten)]
    pub postgres: PostgresArgs,

    /// Where the stream is.
    #[command(flatten)]
    pub stream: StreamArgs,

    /// How long records are kept after every consumer has passed them, for example 1h or 0s.
    #[arg(long, env = "REAPER_KEEP", default_value = "1h", value_parser = humantime::parse_duration)]
    pub keep: Duration,

    /// How often to look.
    #[arg(long, env = "REAPER_INTERVAL", default_value = "10s", value_parser = humantime::parse_duration)]
    pub interval: Duration,

    /// The longest length of a stream, in entries. A million small entries take some 130 MB of Redis's memory. Each partition has
    /// its own stream.
    #[arg(long, env = "STREAM_LEN_MAX", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub stream_len_max: u64,

    /// A consumer that is behind and has not moved for this long is reported as dead.
    #[arg(long, env = "REAPER_DEAD_AFTER", default_value = "1m", value_parser = humantime::parse_duration)]
    pub dead_after: Duration,

    /// How long a client can send a request with an idempotency key again and receive the same response.
    #[arg(long, env = "REAPER_KEEP_REQUESTS", default_value = "72h", value_parser = parse_keep_requests)]
    pub keep_requests: Duration,

    /// Remove what can be removed now, and exit.
    #[arg(long)]
    pub once: bool,

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// A client may send its request again for a day. If the request were forgotten sooner, it would be charged again.
fn parse_keep_requests(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(keep) if keep >= Duration::from_secs(24 * 3600) => Ok(keep),
        _ => Err("give a time of at least 24h, for example 72h".to_owned()),
    }
}
