//! Connections to Postgres. Users: every process but the simulator.

use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, Config, NoTls};

/// How long a connection may take to come about, and how long a caller waits for one of the pool.
const CONNECT_WAIT: Duration = Duration::from_secs(3);

/// Bounds inside the server, in ms, for what a dropped future cannot stop: a query goes on when its caller has left.
const SESSION_LIMITS: &str =
    "SET statement_timeout = 30000; SET lock_timeout = 10000; SET idle_in_transaction_session_timeout = 60000";

/// `config` with what every connection here wants: bounded waits, and keepalives that notice a dead peer.
fn tuned(config: &Config, process: &str) -> Config {
    let mut config = config.clone();
    config.application_name(process);
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_WAIT);
    }
    // Of several hosts, the one that takes writes; and after a failover not the one that did.
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    config.keepalives_idle(Duration::from_secs(30)).tcp_user_timeout(Duration::from_secs(30));
    config
}

/// A pool of at most `size` connections for `process`. Connects when first used.
///
/// # Errors
/// The pool cannot be built; nothing was connected yet.
pub fn pool(config: &Config, process: &str, size: usize) -> Result<Pool> {
    let manager =
        Manager::from_config(tuned(config, process), NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(CONNECT_WAIT))
        .create_timeout(Some(CONNECT_WAIT))
        .recycle_timeout(Some(CONNECT_WAIT))
        .post_create(Hook::async_fn(|client, _| {
            Box::pin(async move { client.batch_execute(SESSION_LIMITS).await.map_err(HookError::Backend) })
        }))
        .build()
        .context("building the connection pool")
}

/// A connection of its own, for a process that works alone on it. `on_notice` is told when a notification arrives.
///
/// # Errors
/// Postgres is away or refuses: back off and try again.
pub async fn connect(config: &Config, process: &str, mut on_notice: impl FnMut() + Send + 'static) -> Result<Client> {
    let (client, mut connection) = tokio::time::timeout(CONNECT_WAIT, tuned(config, process).connect(NoTls))
        .await
        .context("connecting to Postgres took too long")?
        .context("connecting to Postgres")?;
    tokio::spawn(async move {
        let messages = std::future::poll_fn(|cx| {
            loop {
                match std::task::ready!(connection.poll_message(cx)) {
                    Some(Ok(tokio_postgres::AsyncMessage::Notification(_))) => on_notice(),
                    Some(Ok(_)) => {}
                    // The client's next query reports the end of the connection; nobody needs to hear of it twice.
                    Some(Err(_)) | None => return std::task::Poll::Ready(()),
                }
            }
        });
        messages.await;
    });
    client.batch_execute(SESSION_LIMITS).await.context("setting session limits")?;
    Ok(client)
}
