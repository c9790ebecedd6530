//! A hot standby of the log, from which records are read that the stream lacks. It spares the primary that work, and decides nothing:
//! heads and tokens are the primary's. So it may be behind, ahead, or promoted beside the primary.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use tracing::warn;

/// How long a standby that failed is left alone.
const RETRY_WAIT: Duration = Duration::from_secs(30);

/// How long connecting to it may take, and a statement there. Then the primary is asked.
const CONNECT_WAIT: Duration = Duration::from_secs(1);
pub(super) const STATEMENT_WAIT: Duration = Duration::from_secs(3);

/// The connection to a standby, if there is one.
pub(super) struct Standby {
    config: Option<tokio_postgres::Config>,
    consumer: String,
    client: Option<Client>,
    retry_at: Option<Instant>,
}

impl Standby {
    /// Connects when first used.
    pub fn new(config: Option<tokio_postgres::Config>, consumer: &str) -> Self {
        Self { config, consumer: consumer.to_owned(), client: None, retry_at: None }
    }

    /// A connection; `None` if there is no standby, or it is left alone.
    pub async fn client(&mut self) -> Option<&Client> {
        let config = self.config.as_ref()?;
        if self.client.as_ref().is_none_or(|client| client.is_closed()) {
            self.client = None;
            if self.retry_at.is_some_and(|at| Instant::now() < at) {
                return None;
            }
            let connected = tokio::time::timeout(CONNECT_WAIT, connect(config, &self.consumer)).await;
            match connected.context("it does not answer").flatten() {
                Ok(client) => self.client = Some(client),
                Err(error) => self.leave(&format!("{error:#}")),
            }
        }
        self.client.as_ref()
    }

    /// Leaves it alone for a while.
    pub fn leave(&mut self, error: &str) {
        let consumer = &self.consumer;
        warn!(consumer, error, wait_s = RETRY_WAIT.as_secs(), "the standby cannot be read: reading from the primary");
        self.client = None;
        self.retry_at = Some(Instant::now() + RETRY_WAIT);
    }
}

async fn connect(config: &tokio_postgres::Config, consumer: &str) -> Result<Client> {
    let client = connect::postgres::connect_to_standby(config, &format!("consumer {consumer}")).await?;
    pglog::prepare_session(&client).await.context("setting up the session")?;
    Ok(client)
}
