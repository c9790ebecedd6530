//! The consumer's connection to Postgres, and whether a transaction is open on it.

use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Identity;

/// How long Postgres may take to roll a transaction back.
const ROLLBACK_WAIT: Duration = Duration::from_secs(2);

/// Commits do not wait for the disk. If Postgres crashes it loses state and checkpoint together, and every later commit of
/// any process, such as the reaping of these records. The records are then folded again.
const NO_FLUSH: &str = "SET synchronous_commit = off";

/// A connection on which one consumer works alone.
pub(super) struct ConsumerSession {
    pub client: Client,
    /// BEGIN was sent, and neither COMMIT nor ROLLBACK was answered.
    pub is_in_transaction: bool,
}

impl ConsumerSession {
    /// Connects, and returns what the log says of itself.
    ///
    /// # Errors
    /// Postgres is away, or the tables are of another version.
    pub async fn connect(config: &tokio_postgres::Config, name: &str) -> Result<(Self, Identity)> {
        let client = connect::postgres::connect(config, &format!("consumer {name}"), || {}).await?;
        let identity = pglog::prepare_session(&client).await.context("setting up the session")?;
        client.batch_execute(NO_FLUSH).await.context("setting up the session")?;
        Ok((Self { client, is_in_transaction: false }, identity))
    }

    /// Begins a transaction. This notes it before BEGIN is sent, so that a step that is dropped halfway is rolled back.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn begin(&mut self) -> Result<()> {
        self.is_in_transaction = true;
        self.client.batch_execute("BEGIN").await.context("beginning")
    }

    /// Ends a transaction that is not to be committed, if one is open.
    ///
    /// # Errors
    /// Postgres did not roll it back. The connection must be closed, which ends the transaction too.
    pub async fn roll_back(&mut self) -> Result<()> {
        if self.is_in_transaction {
            tokio::time::timeout(ROLLBACK_WAIT, self.client.batch_execute("ROLLBACK"))
                .await
                .context("no answer to ROLLBACK")?
                .context("rolling back")?;
            self.is_in_transaction = false;
        }
        Ok(())
    }
}
