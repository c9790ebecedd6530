//! The consumer's connections to Postgres, and whether a transaction is open: to the log, to the database of its state if that is
//! another one, and to a hot standby of the log.

use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Identity;

use super::standby::Standby;
use crate::config::Databases;
use crate::home;

/// How long Postgres may take to roll a transaction back.
const ROLLBACK_WAIT: Duration = Duration::from_secs(2);

/// Commits do not wait for the disk. If Postgres crashes it loses state and checkpoint together, and every later commit of
/// any process, such as the reaping of these records. The records are then folded again.
const NO_FLUSH: &str = "SET synchronous_commit = off";

/// Connections on which one consumer works alone.
pub(super) struct ConsumerSession {
    /// To the log's own database.
    pub client: Client,
    /// To the database of the state. `None`: it is the log's.
    own: Option<Client>,
    /// A hot standby of the log.
    pub standby: Standby,
    /// BEGIN was sent, and neither COMMIT nor ROLLBACK was answered.
    pub is_in_transaction: bool,
}

impl ConsumerSession {
    /// Connects, and returns what the log says of itself.
    ///
    /// # Errors
    /// Postgres is away, or the tables are of another version.
    pub async fn connect(databases: &Databases, name: &str) -> Result<(Self, Identity)> {
        let client = connect::postgres::connect(&databases.log, &format!("consumer {name}"), || {}).await?;
        let identity = pglog::prepare_session(&client).await.context("setting up the session")?;
        client.batch_execute(NO_FLUSH).await.context("setting up the session")?;
        let own = match &databases.own {
            Some(config) => Some(home::connect(config, name).await?),
            None => None,
        };
        let standby = Standby::new(databases.standby.clone(), name);
        Ok((Self { client, own, standby, is_in_transaction: false }, identity))
    }

    /// The database with checkpoints and states.
    pub fn home(&self) -> &Client {
        self.own.as_ref().unwrap_or(&self.client)
    }

    /// Both, if they are two: the log's database, and that of checkpoints and states.
    pub fn both(&mut self) -> Option<(&mut Client, &mut Client)> {
        self.own.as_mut().map(|own| (&mut self.client, own))
    }

    /// Whether checkpoints and states are in a database of their own.
    pub fn is_elsewhere(&self) -> bool {
        self.own.is_some()
    }

    /// Whether a connection that every step needs has ended.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed() || self.own.as_ref().is_some_and(|own| own.is_closed())
    }

    /// Begins a transaction. This notes it before BEGIN is sent, so that a step that is dropped halfway is rolled back.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn begin(&mut self) -> Result<()> {
        self.is_in_transaction = true;
        self.home().batch_execute("BEGIN").await.context("beginning")
    }

    /// Ends a transaction that is not to be committed, if one is open.
    ///
    /// # Errors
    /// Postgres did not roll it back. The connection must be closed, which ends the transaction too.
    pub async fn roll_back(&mut self) -> Result<()> {
        if self.is_in_transaction {
            tokio::time::timeout(ROLLBACK_WAIT, self.home().batch_execute("ROLLBACK"))
                .await
                .context("no answer to ROLLBACK")?
                .context("rolling back")?;
            self.is_in_transaction = false;
        }
        Ok(())
    }
}
