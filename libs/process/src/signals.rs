//! SIGINT and SIGTERM ask a process to stop. Users: `main`, and programs that have their own.

use anyhow::{Context, Result};
use common::shutdown::CancellationToken;
use tokio::signal::unix::{SignalKind, signal};

use crate::notify;

/// A token that the first SIGINT or SIGTERM cancels. The process then finishes the work in hand and exits with status 0.
///
/// # Errors
/// The signals cannot be caught. The process should not start.
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
        // Before anything else, because logging may fail.
        cancelled.cancel();
        notify::stopping();
        tracing::info!(signal = name, "stopping");
    });
    Ok(token)
}
