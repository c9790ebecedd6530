//! One streamer leads a partition. The leadership is an advisory lock on the very connection that the leader works on:
//! who loses the connection has lost the lock, and cannot cut another batch with it.
//!
//! A leader that does not know of its loss yet is harmless: batches are cut by compare-and-set (the primary key of
//! `log_batches`), and the stream refuses ids it has already passed.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::Notify;
use tokio_postgres::Client;

/// First half of the lock's key; the second is the partition.
const LEADER_LOCK: i32 = 0x524f_434b;

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
        let client = common::postgres::connect(config, "streamer", move || hint.notify_one()).await?;
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
                    &[&LEADER_LOCK, &partition],
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
