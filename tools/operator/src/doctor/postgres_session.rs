//! Whether a connection is a session. A pooler in transaction mode gives a server connection to another client after each
//! transaction. Then the streamer's advisory lock, its LISTEN and every SET pass to another client too.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use tokio::sync::Notify;
use tokio_postgres::SimpleQueryMessage;

use super::Config;
use super::finding::Finding;

/// How long a notification may take, and a third of the time that a check may take.
const PROBE_WAIT: Duration = Duration::from_secs(3);

/// Both checks, each on connections of its own.
pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let session = tokio::time::timeout(PROBE_WAIT * 3, session(config)).await;
    let listen = tokio::time::timeout(PROBE_WAIT * 3, listen(config)).await;
    vec![
        session
            .context("a second connection had to wait")
            .flatten()
            .unwrap_or_else(|error| Finding::unseen("postgres.session", &error)),
        listen
            .context("a second connection had to wait")
            .flatten()
            .unwrap_or_else(|error| Finding::unseen("postgres.listen", &error)),
    ]
}

/// Sets a parameter, lets another client run a transaction, and then looks for the parameter and the same server process.
async fn session(config: &Config) -> Result<Finding> {
    const CHECK: &str = "postgres.session";
    let url = &config.postgres.database_url;
    let ours = connect::postgres::connect(url, "doctor", || {}).await?;
    // Simple queries, because such a pooler may break prepared statements too, and this check is not about them.
    ours.batch_execute("SET rocket_rides.doctor = 'here'").await.context("setting a parameter")?;
    let before = backend_pid(&ours).await?;
    // A pooler gives this transaction the server connection that was used last.
    let other = connect::postgres::connect(url, "doctor", || {}).await?;
    other.batch_execute("BEGIN; SELECT 1").await.context("opening a transaction beside it")?;
    let after = backend_pid(&ours).await?;
    let setting = first(&ours, "SELECT current_setting('rocket_rides.doctor', true)").await?;
    other.batch_execute("ROLLBACK").await.context("ending the transaction beside it")?;
    if before == after && setting == "here" {
        return Ok(Finding::ok(CHECK, "a connection stays in one server process and keeps its settings"));
    }
    Ok(Finding::fail(
        CHECK,
        format!(
            "a connection is not a session: it moved from process {before} to {after}, and a setting is {setting:?}"
        ),
        "two streamers may lead at once, hints do not arrive, and limits apply to the connections of other clients",
        "connect to Postgres itself, or set the pooler to session mode (PgBouncer: pool_mode = session)",
    ))
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
        "connect to Postgres itself, or set the pooler to session mode (PgBouncer: pool_mode = session)",
    ))
}

async fn backend_pid(client: &Client) -> Result<String> {
    first(client, "SELECT pg_backend_pid()").await
}

/// The first column of the first row, as text.
async fn first(client: &Client, query: &str) -> Result<String> {
    let messages = client.simple_query(query).await.context("looking at the session")?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    });
    row.context("no row came back")
}
