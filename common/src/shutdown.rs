//! Users: every process, the tools, and `libs/process`.
//!
//! Stopping: a process that is told to stop finishes the unit in hand, and starts no other.

use std::time::Duration;

pub use tokio_util::sync::CancellationToken;

/// Sleeps until `duration` has passed or the shutdown begins. Returns whether the process should go on.
pub async fn sleep_or_stop(duration: Duration, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        () = shutdown.cancelled() => false,
        () = tokio::time::sleep(duration) => true,
    }
}

/// How long work in hand may take to finish after the process is told to stop. It is bounded because a server may never
/// answer.
pub const GRACE: Duration = Duration::from_secs(10);

/// Returns when the shutdown has begun and the time for work in hand is over. The caller then drops its work, as if the
/// process had been killed: every unit survives that.
pub async fn stop_at_last(shutdown: &CancellationToken) {
    stop_within(GRACE, shutdown).await;
}

/// As [`stop_at_last`], with another time for work in hand.
pub async fn stop_within(grace: Duration, shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(grace).await;
    tracing::warn!(waited_s = grace.as_secs(), "work in hand did not finish in time");
}
