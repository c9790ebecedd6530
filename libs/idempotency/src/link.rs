//! A connection to Redis that is made at the first command, and made anew after an error. It refuses a node of a Redis Cluster.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ScriptInvocation, cmd};
use tokio::sync::Mutex;

/// How long connecting may take.
const CONNECT_WAIT: Duration = Duration::from_secs(2);

/// How long a command may take. The scripts here need less than a millisecond; a server that writes its log to a slow
/// disk may need a second.
const REPLY_WAIT: Duration = Duration::from_secs(5);

/// A script has keys in several slots, and would stop half way. The client follows no redirection.
const IN_CLUSTER: &str = "this is a node of a Redis Cluster, and operations need a Redis server of their own";

/// One connection, shared by all clones.
#[derive(Clone)]
pub(crate) struct Link {
    client: redis::Client,
    connection: Arc<Mutex<Option<MultiplexedConnection>>>,
}

impl Link {
    pub(crate) fn new(client: redis::Client) -> Self {
        Self { client, connection: Arc::default() }
    }

    pub(crate) async fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> RedisResult<T> {
        let mut connection = self.connect().await?;
        let reply = script.invoke_async(&mut connection).await;
        self.checked(reply).await
    }

    pub(crate) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let mut connection = self.connect().await?;
        let reply = command.query_async(&mut connection).await;
        self.checked(reply).await
    }

    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WAIT))
            .set_response_timeout(Some(REPLY_WAIT));
        let mut connected = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        // A user without the right to ask knows the server.
        let info: RedisResult<String> = cmd("INFO").arg("server").query_async(&mut connected).await;
        if info.is_ok_and(|info| is_cluster(&info)) {
            return Err(RedisError::from((ErrorKind::InvalidClientConfig, IN_CLUSTER)));
        }
        Ok(connection.insert(connected).clone())
    }

    /// After an error the connection may be broken, so the next command makes a new one. Commands that are running keep the
    /// old one.
    async fn checked<T>(&self, reply: RedisResult<T>) -> RedisResult<T> {
        if reply.is_err() {
            *self.connection.lock().await = None;
        }
        reply
    }
}

/// Whether `INFO server` is of a node of a Redis Cluster. Valkey may say `server_mode`.
fn is_cluster(info: &str) -> bool {
    info.lines().any(|line| ["redis_mode:cluster", "server_mode:cluster"].contains(&line))
}
