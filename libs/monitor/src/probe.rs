//! Asks Postgres at intervals: how far a process is behind, or only whether Postgres responds.

use std::pin::Pin;
use std::time::Duration;

use anyhow::Result;
use deadpool_postgres::ClientWrapper as Client;
use tracing::debug;

use crate::health::{Health, Pulse};

/// How often Postgres is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long Postgres may take to respond.
const ANSWER_WAIT: Duration = Duration::from_secs(3);

/// A question to Postgres, in progress on a connection.
pub type Question<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

impl Health {
    /// Asks Postgres every second, on a connection of its own and until the process ends. `pulse` beats after each response.
    /// Does nothing if the health is not served.
    pub fn ask_postgres(
        &self,
        postgres: &tokio_postgres::Config,
        pulse: Pulse,
        ask: impl for<'a> Fn(&'a Client) -> Question<'a> + Send + Sync + 'static,
    ) {
        if !self.is_served() {
            return;
        }
        let postgres = postgres.clone();
        tokio::spawn(async move {
            let mut client = None;
            loop {
                let asked = tokio::time::timeout(ANSWER_WAIT, async {
                    let connected = match client.take() {
                        Some(client) => client,
                        None => connect::postgres::connect(&postgres, "monitor", || {}).await?,
                    };
                    ask(&connected).await?;
                    anyhow::Ok(connected)
                });
                match asked.await {
                    Ok(Ok(connected)) => {
                        client = Some(connected);
                        pulse.beat();
                    }
                    Ok(Err(error)) => debug!(error = format!("{error:#}"), "postgres cannot be asked"),
                    Err(_) => debug!("postgres does not answer"),
                }
                tokio::time::sleep(INTERVAL).await;
            }
        });
    }
}

/// Asks only whether Postgres responds.
pub fn anything(client: &Client) -> Question<'_> {
    Box::pin(async {
        client.simple_query("SELECT 1").await?;
        Ok(())
    })
}
