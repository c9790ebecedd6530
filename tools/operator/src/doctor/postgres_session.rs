//! Whether a connection is a session. A pooler in transaction mode gives a server connection to another client after each
//! transaction. Then the streamer's advisory lock, its LISTEN and every SET pass to another client too.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::Notify;

use super::Config;
use super::finding::Finding;

const SESSION_FIX: &str = "connect to Postgres itself, or set the pooler to session mode (PgBouncer: pool_mode = session and \
                           server_reset_query = DISCARD ALL)";

/// How long a notification may take, and a third of the time that a check may take.
const PROBE_WAIT: Duration = Duration::from_secs(3);

/// Both checks. Connecting has compared two sessions already.
pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let listen = tokio::time::timeout(PROBE_WAIT * 3, listen(config)).await;
    vec![
        Finding::ok("postgres.session", "each connection has a session of its own"),
        listen
            .context("a second connection had to wait")
            .flatten()
            .unwrap_or_else(|error| Finding::unseen("postgres.listen", &error)),
    ]
}

/// The finding of a connection that was refused because its session is not its own. Nothing else can be looked at then.
pub(super) fn shared() -> Finding {
    Finding::fail(
        "postgres.session",
        "a connection has no session of its own: DATABASE_URL leads to a pooler in transaction mode",
        "two streamers may lead at once, hints do not arrive, and settings apply to the connections of other clients",
        SESSION_FIX,
    )
}

/// Listens on one connection and notifies on another.
async fn listen(config: &Config) -> Result<Finding> {
    const CHECK: &str = "postgres.listen";
    let heard = Arc::new(Notify::new());
    let told = Arc::clone(&heard);
    let url = &config.postgres.database_url;
    let listener = connect::postgres::connect(url, "doctor", move || told.notify_one()).await?;
    listener.batch_execute("LISTEN rocket_rides_doctor").await.context("listening")?;
    let speaker = connect::postgres::connect(url, "doctor", || {}).await?;
    speaker.batch_execute("NOTIFY rocket_rides_doctor").await.context("notifying")?;
    if tokio::time::timeout(PROBE_WAIT, heard.notified()).await.is_ok() {
        return Ok(Finding::ok(CHECK, "a notification arrives"));
    }
    Ok(Finding::warn(
        CHECK,
        format!("a notification did not arrive within {} s", PROBE_WAIT.as_secs()),
        "hints do not wake the streamer; it looks ten times a second, so records arrive up to 100 ms later",
        SESSION_FIX,
    ))
}
