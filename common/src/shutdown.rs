//! Stopping. Users: every process and `libs/process`.

use std::time::Duration;

pub use tokio_util::sync::CancellationToken;

/// Sleeps, but not past a shutdown. Returns whether the process should go on.
pub async fn sleep_or_stop(duration: Duration, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        () = shutdown.cancelled() => false,
        () = tokio::time::sleep(duration) => true,
    }
}

/// How long work in hand may take to finish once the process is told to stop. A server may never answer.
const GRACE: Duration = Duration::from_secs(10);

/// Returns when `shutdown` was asked for and the time for work in hand is over. Whatever is dropped then is as if the
/// process had been killed, which every step survives.
pub async fn stop_at_last(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(GRACE).await;
    tracing::warn!(waited_s = GRACE.as_secs(), "work in hand did not finish in time");
}
