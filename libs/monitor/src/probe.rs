//! Asks Postgres at intervals: whether a process can do its work there, and how far it is behind.

use std::pin::Pin;
use std::time::Duration;

use anyhow::Result;
use connect::postgres::leave_if_read_only;
use deadpool_postgres::ClientWrapper as Client;
use tracing::{debug, warn};

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
                    Ok(Err(error)) => {
                        leave_if_read_only(error.as_ref());
                        let words = format!("{error:#}");
                        if is_refused(&error) {
                            warn!(error = words, "this process cannot work: apply schema.sql and ops/roles.sql");
                        } else {
                            debug!(error = words, "postgres cannot be asked");
                        }
                    }
                    Err(_) => debug!("postgres does not answer"),
                }
                tokio::time::sleep(INTERVAL).await;
            }
        });
    }
}

/// Whether a table, a column or a right is missing (class 42).
fn is_refused(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref().and_then(tokio_postgres::Error::code);
    error.is_some_and(|state| state.code().starts_with("42"))
}

/// Runs statements that succeed only while a process can do its work, and change no row: `UPDATE … WHERE false` fails on a
/// server that is read-only, and where a table, a column or a right is missing.
///
/// Each statement is a transaction of its own, so that no lock on a table is held while another one is waited for.
///
/// # Errors
/// A statement failed.
pub async fn try_statements(client: &Client, statements: &[&str]) -> Result<()> {
    for statement in statements {
        client.simple_query(statement).await?;
    }
    Ok(())
}
