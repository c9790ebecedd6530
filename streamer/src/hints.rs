//! Hints: a client that has staged a record wakes the leader early.
//!
//! They arrive on a session of their own, for the reason that [`leadership`](crate::leadership) gives. A missed hint costs
//! a tenth of a second at most, so an error here stops nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::warn;

/// The name of the session in `pg_stat_activity`.
const SESSION_NAME: &str = "streamer hints";

/// How often the session says something, and how long the answer may take.
const SAY_INTERVAL: Duration = Duration::from_secs(5);
const ANSWER_WAIT: Duration = Duration::from_secs(3);

/// The pause before listening again after an error.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// Whether a hint has arrived.
#[derive(Debug, Default)]
pub(crate) struct Hint {
    has_arrived: AtomicBool,
    waiting: Notify,
}

impl Hint {
    /// A hint has arrived.
    fn tell(&self) {
        self.has_arrived.store(true, Ordering::Relaxed);
        self.waiting.notify_one();
    }

    /// Waits for a hint. It may never come.
    pub async fn arrived(&self) {
        self.waiting.notified().await;
    }

    /// Whether a hint has arrived since the last call.
    pub fn take(&self) -> bool {
        self.has_arrived.swap(false, Ordering::Relaxed)
    }
}

/// Listens in the background, from [`listen`](Self::listen) until it is dropped.
pub(crate) struct Hints {
    postgres: tokio_postgres::Config,
    hint: Arc<Hint>,
    listening: Option<JoinHandle<Infallible>>,
}

impl Hints {
    /// Each hint is passed on to `hint`.
    pub fn new(postgres: &tokio_postgres::Config, hint: Arc<Hint>) -> Self {
        Self { postgres: postgres.clone(), hint, listening: None }
    }

    /// Begins to listen, if it does not listen yet.
    pub fn listen(&mut self) {
        let (postgres, hint) = (&self.postgres, &self.hint);
        self.listening.get_or_insert_with(|| tokio::spawn(listen(postgres.clone(), Arc::clone(hint))));
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        if let Some(listening) = &self.listening {
            listening.abort();
        }
    }
}

async fn listen(postgres: tokio_postgres::Config, hint: Arc<Hint>) -> Infallible {
    loop {
        let Err(error) = listen_until_lost(&postgres, &hint).await;
        warn!(error = format!("{error:#}"), "hints do not arrive: the leader looks ten times a second without them");
        sleep(RETRY_WAIT).await;
    }
}

/// # Errors
/// The session has ended.
async fn listen_until_lost(postgres: &tokio_postgres::Config, hint: &Arc<Hint>) -> Result<Infallible> {
    let told = Arc::clone(hint);
    let client = connect::postgres::connect(postgres, SESSION_NAME, move || told.tell()).await?;
    pglog::listen(&client).await.context("listening for hints")?;
    loop {
        timeout(ANSWER_WAIT, end_stuck_sessions(&client)).await.context("no answer")??;
        sleep(SAY_INTERVAL).await;
    }
}

/// Ends the sessions of streamers that do not read their hints any more: they are stopped. Postgres itself ends no session
/// that waits until its client reads, and such a session keeps every later notification in the server's queue.
async fn end_stuck_sessions(client: &Client) -> Result<()> {
    client
        .execute(
            "-- streamer::end_stuck_sessions
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND usename = current_user AND application_name = $1
               AND wait_event = 'ClientWrite' AND state_change < now() - $2 * INTERVAL '1 second'",
            &[&SESSION_NAME, &(SAY_INTERVAL.as_secs_f64() * 3.0)],
        )
        .await
        .context("ending sessions that read no hints")?;
    Ok(())
}
