//! SIGINT and SIGTERM. Users: every `main`.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
pub use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGINT or SIGTERM. The process then finishes what it has in hand and exits 0.
///
/// # Errors
/// The signals cannot be caught; the process should not start.
pub fn on_signal() -> Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        // First of all: to log may fail.
        cancelled.cancel();
        crate::notify::stopping();
        tracing::info!(signal = name, "stopping");
    });
    Ok(token)
}

/// Sleeps, but not past a shutdown. Returns whether the process should go on.
pub async fn sleep_or_stop(duration: std::time::Duration, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        () = shutdown.cancelled() => false,
        () = tokio::time::sleep(duration) => true,
    }
}

/// How long work in hand may take to finish once the process is told to stop. A server may never answer.
const GRACE: std::time::Duration = std::time::Duration::from_secs(10);

/// Returns when `shutdown` was asked for and the time for work in hand is over. Whatever is dropped then is as if the
/// process had been killed, which every step survives.
pub async fn stop_at_last(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(GRACE).await;
    tracing::warn!(waited_s = GRACE.as_secs(), "work in hand did not finish in time");
}
