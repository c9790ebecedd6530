//! Wakes the streamer for records that others have staged: outside of every transaction that writes, and at most once in a
//! while. The writer's groups carry hints of their own. A lost hint costs a moment, nothing else: the streamer looks by
//! itself ten times a second.

use std::sync::Weak;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::database::{Database, Failure, until};

/// The least time between two of these hints.
const HINT_INTERVAL: Duration = Duration::from_millis(1);

/// How long a hint may take. A later one is of no use.
const HINT_WAIT: Duration = Duration::from_secs(2);

/// How often to see whether the writer is gone.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Sends a hint whenever `staged` says that records were committed, until nobody can say so any more.
pub(crate) async fn send_hints(database: Database, staged: Weak<Notify>) {
    while let Some(notify) = staged.upgrade() {
        let is_staged = timeout(LOOK_INTERVAL, notify.notified()).await.is_ok();
        drop(notify);
        if !is_staged {
            continue;
        }
        if let Ok(client) = database.client().await {
            let hinted = until(Instant::now() + HINT_WAIT, pglog::hint(&client)).await;
            if let Err(Failure::Late) = hinted {
                database.discard(client);
            }
        }
        sleep(HINT_INTERVAL).await;
    }
}
