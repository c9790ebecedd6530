//! Wakes the streamer for records that bookings have staged. A hint is sent outside of every transaction that writes, at most
//! once per [`HINT_INTERVAL`]. The writer's groups carry their own hints. A lost hint costs a tenth of a second at most,
//! because the streamer also looks by itself ten times a second.

use std::sync::Weak;
use std::time::Duration;

use common::backoff::Backoff;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::database::{Database, QueryFailure, until};

/// The shortest time between two of these hints.
const HINT_INTERVAL: Duration = Duration::from_millis(1);

/// How long a hint may take. By then the streamer has looked by itself.
const HINT_WAIT: Duration = Duration::from_secs(2);

/// The longest pause after a hint that could not be sent.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(1);

/// How often the task checks whether the writer is gone.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Sends a hint whenever `staged` is notified of a commit. Returns when every other holder of `staged` is gone.
pub(crate) async fn send_hints(database: Database, staged: Weak<Notify>) {
    let mut backoff = Backoff::up_to(RETRY_WAIT_MAX);
    while let Some(notify) = staged.upgrade() {
        let is_staged = timeout(LOOK_INTERVAL, notify.notified()).await.is_ok();
        drop(notify);
        if !is_staged {
            continue;
        }
        if is_hinted(&database).await {
            backoff.reset();
            sleep(HINT_INTERVAL).await;
        } else {
            sleep(backoff.next_wait()).await;
        }
    }
}

/// Sends a hint. Returns whether Postgres took it.
async fn is_hinted(database: &Database) -> bool {
    let Ok(client) = database.client().await else { return false };
    let hinted = until(Instant::now() + HINT_WAIT, pglog::hint(&client)).await;
    if let Err(QueryFailure::Late) = hinted {
        database.discard(client);
    }
    hinted.is_ok()
}
