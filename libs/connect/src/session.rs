//! The beginning of a session: its limits, and the proof that it belongs to this connection alone.
//!
//! A pooler in transaction mode lends one session of the server to many clients, a transaction at a time. Then a lock, a
//! prepared statement and every `SET` of one client are those of another one: a consumer's `synchronous_commit = off` would
//! also let the api confirm rides that a crash takes back. Two checks find such a pooler:
//!
//! - The first connection of a process is compared with a second one, before anything is set. A pooler gives both the same
//!   session, or gives one of them two. Other clients of the pooler may hide that for a moment.
//! - Each session is marked. A new connection whose session is marked already has the settings of an earlier one. This also
//!   finds a pooler in session mode that does not reset its sessions.

use std::time::Duration;

use anyhow::{Context, Result};
use common::stay_down::StayDown;
use tokio::sync::{OnceCell, SetOnce};
use tokio_postgres::{Client, Config, SimpleQueryMessage};
use tracing::debug;

use crate::opener::Opener;

/// Fails if the session is marked, and else marks it. It is sent together with the settings, so a failure sets nothing.
const MARK: &str = "-- connect::mark_session
    SELECT current_setting('rocket_rides.session_of_another_connection')
    WHERE current_setting('rocket_rides.session', true) <> '';
    SET rocket_rides.session = 'marked'";

/// The setting that does not exist. Postgres names it in its error.
const NOT_OURS: &str = "rocket_rides.session_of_another_connection";

/// How long the comparison may take. If the second connection has to wait longer, a pooler in session mode has no other
/// session left: then the first one is not shared.
const COMPARE_WAIT: Duration = Duration::from_secs(2);

/// How often both sessions are compared with themselves. In a busy pool of three sessions a round stays the same by chance in
/// one case of nine.
const ROUND_COUNT: usize = 4;

/// Whether the first two connections of this process shared a session.
static IS_SHARED: OnceCell<bool> = OnceCell::const_new();

/// Set when this process was refused a session of its own.
static REFUSED: SetOnce<SharedSession> = SetOnce::const_new();

/// The server's session belongs to other clients too. No retry helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "DATABASE_URL leads to a pooler that shares sessions among its clients, and the log needs sessions of its own for its \
     locks and settings: connect to Postgres itself, or set the pooler to session mode (PgBouncer: pool_mode = session and \
     server_reset_query = DISCARD ALL)"
)]
struct SharedSession;

/// Returns when a connection of this process has turned out to share its session. The process cannot do its work then.
pub async fn shared_session() -> StayDown {
    StayDown((*REFUSED.wait().await).into())
}

/// Begins the session of a new connection with these settings.
///
/// # Errors
/// [`StayDown`] with [`SharedSession`]; otherwise Postgres is away.
pub(crate) async fn begin(client: &Client, opener: &Opener, config: &Config, settings: &str) -> Result<()> {
    let is_shared = *IS_SHARED.get_or_init(|| compare(client, opener, config)).await;
    let begun = if is_shared { Ok(()) } else { client.batch_execute(&format!("{MARK}; {settings}")).await };
    let is_marked =
        |error: &tokio_postgres::Error| error.as_db_error().is_some_and(|error| error.message().contains(NOT_OURS));
    if is_shared || begun.as_ref().is_err_and(is_marked) {
        let _ = REFUSED.set(SharedSession);
        return Err(StayDown(SharedSession.into()).into());
    }
    begun.context("setting up the session")
}

/// Compares the session with that of a second connection.
async fn compare(client: &Client, opener: &Opener, config: &Config) -> bool {
    let comparing = async {
        let (other, _driving) = opener.open(config, || {}).await?;
        let (ours, theirs) = (session_of(client).await?, session_of(&other).await?);
        let mut is_shared = ours == theirs;
        for _ in 0..ROUND_COUNT {
            // A pooler that uses two sessions in turns gives each client its own again if the clients ask in turns. Here one
            // of them asks twice.
            is_shared = is_shared || theirs != session_of(&other).await? || ours != session_of(client).await?;
        }
        anyhow::Ok(is_shared)
    };
    match tokio::time::timeout(COMPARE_WAIT, comparing).await {
        Ok(Ok(is_shared)) => is_shared,
        Ok(Err(error)) => {
            debug!(error = format!("{error:#}"), "no second connection to compare the session with");
            false
        }
        Err(_) => false,
    }
}

/// The process of the server, and when it started: two servers may have a process of one number.
async fn session_of(client: &Client) -> Result<String> {
    let query = "-- connect::session_of
        SELECT format('%s since %s', pid, backend_start) FROM pg_stat_get_activity(pg_backend_pid())";
    let messages = client.simple_query(query).await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(row.context("the session does not tell its process")?.to_owned())
}
