//! The arguments of every process that uses the stream: where Redis is, and which stream.

use clap::Args;
use pglog::Partition;

use crate::codec::stream_key;

/// Where the stream is.
#[derive(Clone, Args)]
pub struct StreamArgs {
    /// The Redis server, for example redis://localhost:6379 or redis+unix:///run/redis.sock; rediss:// encrypts
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_parser = parse_redis_url)]
    pub redis_url: redis::Client,

    /// Name of the stream's key.
    #[arg(long, env = "STREAM_NAME", default_value = "rocket-rides-log", value_parser = parse_stream_name)]
    pub stream_name: String,

    /// The partition of the log to work on.
    #[arg(long, env = "PARTITION", default_value_t = Partition::FIRST)]
    pub partition: Partition,
}

impl StreamArgs {
    /// The key of the partition's stream.
    pub fn key(&self) -> String {
        stream_key(&self.stream_name, self.partition)
    }
}

impl std::fmt::Debug for StreamArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.key(), self.redis_url.get_connection_info().addr())
    }
}

fn parse_redis_url(text: &str) -> Result<redis::Client, String> {
    crate::redis::client(text).map_err(|_| "give a URL such as redis://localhost:6379".to_owned())
}

fn parse_stream_name(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("give a name such as rocket-rides-log".to_owned()) } else { Ok(text.to_owned()) }
}
