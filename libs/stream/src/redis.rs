//! Connections to Redis through the redis crate. Users: reaper, dashboard, container, operator, launcher,
//! chaos, benchmarks, tests.
//!
//! By default the redis crate waits 500 ms for a reply, and then goes on as if the connection were sound. It is not: after a
//! blocking command that took longer, the next command times out too. Therefore every connection here has a bound that fits
//! its commands, blocking reads have connections of their own ([`wire`](crate::wire)), and a caller that sees an error
//! connects anew.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo};

use connect::tls;

/// How long connecting may take.
pub(crate) const CONNECT_WAIT: Duration = Duration::from_secs(2);

/// How long an ordinary command may take. A pipeline of a thousand entries needs a few milliseconds; a server that
/// writes its log to a slow disk may need a second.
pub(crate) const REPLY_WAIT: Duration = Duration::from_secs(5);

/// The same on a node of a Redis Cluster, which the others replace after seconds: a caller that waits for a node that hangs does
/// not look for the new one.
pub(crate) const CLUSTER_REPLY_WAIT: Duration = Duration::from_secs(2);

/// How long a peer may leave sent bytes unacknowledged.
pub(crate) const PEER_WAIT: Duration = Duration::from_secs(30);

/// A client for `url`, which does not connect yet. Connections send at once and notice a dead peer.
///
/// # Errors
/// The text is no URL of a Redis server.
pub fn client(url: &str) -> redis::RedisResult<Client> {
    let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(PEER_WAIT);
    Client::open(url.into_connection_info()?.set_tcp_settings(tcp))
}

/// A connection for commands that Redis answers at once.
///
/// # Errors
/// Redis is away, or older than 7.0: back off and try again.
pub async fn connect(client: &Client) -> Result<MultiplexedConnection> {
    connect_patiently(client, REPLY_WAIT).await
}

/// As [`connect()`], for what is no part of the log and works on one server only: the keys of one script lie in several slots, or
/// the client follows no redirection.
///
/// # Errors
/// As [`connect()`]. Also if it is a node of a Redis Cluster: `user`, such as `the board`, needs another server.
pub async fn connect_to_server(client: &Client, user: &str) -> Result<MultiplexedConnection> {
    let (connection, info) = open(client, REPLY_WAIT).await?;
    ensure!(!is_cluster(&info), "this is a node of a Redis Cluster: {user} needs a Redis server of its own");
    Ok(connection)
}

/// A connection for commands that may take up to `reply_wait`.
///
/// # Errors
/// As [`connect()`].
pub async fn connect_patiently(client: &Client, reply_wait: Duration) -> Result<MultiplexedConnection> {
    Ok(open(client, reply_wait).await?.0)
}

/// A connection, and the server's reply to `INFO server`.
async fn open(client: &Client, reply_wait: Duration) -> Result<(MultiplexedConnection, String)> {
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_WAIT)).set_response_timeout(Some(reply_wait));
    let connected = tls::for_redis(client)?.get_multiplexed_async_connection_with_config(&config).await;
    let mut connection = connected.context("connecting to Redis").map_err(tls::explain)?;
    let info: String =
        redis::cmd("INFO").arg("server").query_async(&mut connection).await.context("asking Redis for its version")?;
    ensure_version(&info)?;
    Ok((connection, info))
}

/// Checks the reply to `INFO server`.
pub(crate) fn ensure_version(info: &str) -> Result<()> {
    let version = server_version(info).context("Redis does not tell its version")?;
    ensure!(version >= 7, "this is Redis {version}, and 7.0 or newer is needed (or Valkey)");
    Ok(())
}

/// Whether `INFO server` is of a node of a Redis Cluster. Valkey says `server_mode`, unless it is told to say `redis_mode`.
pub(crate) fn is_cluster(info: &str) -> bool {
    info.lines().any(|line| ["redis_mode:cluster", "server_mode:cluster"].contains(&line))
}

/// The major version out of `INFO server`. Valkey reports the Redis version it is compatible with.
fn server_version(info: &str) -> Option<u32> {
    let line = info.lines().find_map(|line| line.strip_prefix("redis_version:"))?;
    line.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{is_cluster, server_version};

    #[test]
    fn the_version_is_found_in_the_server_section() {
        assert_eq!(server_version("# Server\r\nredis_version:7.0.15\r\nredis_git_sha1:0\r\n"), Some(7));
        assert_eq!(server_version("# Server\r\nserver_name:valkey\r\nredis_version:7.2.4\r\n"), Some(7));
        assert_eq!(server_version(""), None);
    }

    #[test]
    fn a_node_of_a_cluster_says_so() {
        assert!(is_cluster("redis_build_id:1\r\nredis_mode:cluster\r\nos:Linux\r\n"));
        assert!(is_cluster("server_mode:cluster\r\n"));
        assert!(!is_cluster("redis_mode:standalone\r\n"));
    }
}
