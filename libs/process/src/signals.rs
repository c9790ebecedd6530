//! SIGINT and SIGTERM.

use anyhow::{Context, Result};
use common::shutdown::CancellationToken;
use tokio::signal::unix::{SignalKind, signal};

use crate::notify;

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
        notify::stopping();
        tracing::info!(signal = name, "stopping");
    });
    Ok(token)
}
