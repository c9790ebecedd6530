//! One streamer leads a partition. The leadership is an advisory lock on the very connection that the leader works on:
//! who loses the connection has lost the lock, and cannot cut another batch with it.
//!
//! A leader that does not know of its loss yet is harmless: batches are cut by compare-and-set (the primary key of
//! `log_batches`), and the stream refuses ids it has already passed.

use std::sync::Arc;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use tokio::sync::Notify;

/// What a session that may hold the lock asks of the server. A leader whose machine has gone, or whose process is stopped,
/// must lose the lock although its connection is not closed: the server ends sessions that ask nothing for a while (a leader
/// asks ten times a second) and finds out about dead peers. And counting a huge backlog may take longer than a
/// statement of other processes, though not longer than a step.
const SESSION: &str = "SET idle_session_timeout = '15s'; SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5;
    SET tcp_keepalives_count = 3; SET tcp_user_timeout = '20s'; SET statement_timeout = '40s'";

/// A connection that leads, or asks to.
pub(crate) struct Post {
    /// The connection.
    pub client: Client,
    leads: bool,
}

/// Whether to ask for the lock before leading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Lead when the lock is free.
    ByLock,
    /// Lead whatever others do: the wrong leader that the design must bear.
    Anyway,
}

impl Post {
    /// Connects and listens for hints, which are passed on to `hint`.
    pub async fn connect(config: &tokio_postgres::Config, hint: Arc<Notify>, claim: Claim) -> Result<Self> {
        let client = connect::postgres::connect(config, "streamer", move || hint.notify_one()).await?;
        client.batch_execute(SESSION).await.context("setting up the session")?;
        client.batch_execute(&format!("LISTEN {}", pglog::HINT_CHANNEL)).await.context("listening for hints")?;
        pglog::prepare_session(&client).await.context("setting up the session")?;
        Ok(Self { client, leads: claim == Claim::Anyway })
    }

    /// Whether this connection leads now; if it did not, whether it could take the lock.
    pub async fn leads(&mut self, partition: i32) -> Result<bool> {
        if !self.leads {
            let row = self
                .client
                .query_one(
                    "-- streamer::leads
                     SELECT pg_try_advisory_lock($1, $2)",
                    &[&pglog::LEADER_LOCK, &partition],
                )
                .await
                .context("asking for the leadership")?;
            self.leads = row.get(0);
            if self.leads {
                tracing::info!(partition, "leading");
            }
        }
        Ok(self.leads)
    }
}
