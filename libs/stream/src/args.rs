//! The arguments of every process that uses the stream: where Redis is, and which stream.

use clap::Args;
use pglog::{Identity, Partitions};

use crate::codec::Stream;
use crate::servers::Servers;

/// Where the stream is.
#[derive(Debug, Clone, Args)]
pub struct StreamArgs {
    /// The Redis server, for example redis://localhost:6379 or redis+unix:///run/redis.sock; rediss:// encrypts. Several nodes of
    /// a Redis Cluster have commas between them
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    pub redis_url: Servers,

    /// Name of the stream's key.
    #[arg(long, env = "STREAM_NAME", default_value = "rocket-rides-log", value_parser = parse_stream_name)]
    pub stream_name: String,

    /// The partitions of the log to work on: all, or numbers such as 0,3.
    #[arg(long, env = "PARTITIONS", alias = "partition", default_value_t)]
    pub partitions: Partitions,
}

impl StreamArgs {
    /// The streams of a log.
    pub fn stream(&self, log: &Identity) -> Stream {
        Stream { name: self.stream_name.clone(), log_id: log.log_id.clone() }
    }
}

/// Reads the URL of a Redis server.
///
/// # Errors
/// A sentence that says what to give instead.
pub fn parse_redis_url(text: &str) -> Result<redis::Client, String> {
    let servers: Servers = text.parse().map_err(|error: anyhow::Error| error.to_string())?;
    if servers.is_cluster() {
        Err("give one server, and no Redis Cluster".to_owned())
    } else {
        Ok(servers.first().clone())
    }
}

/// Reads the name of a stream.
///
/// # Errors
/// As [`parse_redis_url`].
pub fn parse_stream_name(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("give a name such as rocket-rides-log".to_owned());
    }
    // No other key would lie in the hash slot of this one, and the streamer could not set the stream aside.
    if text.contains('}') && hash_tag(text).is_none() {
        return Err("use } only to end a hash tag, as in {rides}-log".to_owned());
    }
    Ok(text.to_owned())
}

/// The part of a key that decides its hash slot in a Redis Cluster, if it is not the whole key: what stands between the first
/// `{` and the next `}`, if that is not empty.
pub fn hash_tag(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once('{')?;
    let (tag, _) = rest.split_once('}')?;
    (!tag.is_empty()).then_some(tag)
}

#[cfg(test)]
mod tests {
    use super::{hash_tag, parse_stream_name};

    #[test]
    fn a_hash_tag_is_between_the_first_braces_and_not_empty() {
        let cases =
            [("a", None), ("{a}b", Some("a")), ("a{b}{c}", Some("b")), ("a{}{b}", None), ("}{a", None), ("{a", None)];
        for (key, tag) in cases {
            assert_eq!(hash_tag(key), tag, "{key}");
            assert_eq!(parse_stream_name(key).is_ok(), tag.is_some() || !key.contains('}'), "{key}");
        }
    }
}
