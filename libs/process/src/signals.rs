//! SIGINT, SIGTERM and SIGHUP ask a process to stop. Users: `main`, and programs that have their own.

use anyhow::{Context, Result};
use common::shutdown::CancellationToken;
use tokio::signal::unix::{SignalKind, signal};

use crate::notify;

/// A token that the first SIGINT, SIGTERM or SIGHUP cancels. The process then finishes the work in hand and exits with status 0.
/// SIGHUP comes when the terminal is closed; under `nohup` it is still ignored.
///
/// # Errors
/// The signals cannot be caught. The process should not start.
pub fn on_signal() -> Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut hangup =
        if ignores_hangup() { None } else { Some(signal(SignalKind::hangup()).context("catching SIGHUP")?) };
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
            _ = hung_up => "SIGHUP",
        };
        // Before anything else, because logging may fail.
        cancelled.cancel();
        notify::stopping();
        tracing::info!(signal = name, "stopping");
    });
    Ok(token)
}

/// Whether this process was started with SIGHUP ignored. Catching the signal would undo that.
fn ignores_hangup() -> bool {
    // A system without /proc does not tell. There the signal is caught.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // One bit per signal; the lowest is SIGHUP, signal 1.
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
