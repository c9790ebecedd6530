//! Notifications for systemd, if systemd has started the process: it is ready, or it is stopping. Users: every process.
//!
//! Ready means that the process is set up: flags are sound, sockets are open, signals are caught. It does not mean that
//! Postgres or Redis can be reached. The process waits for those, and `/readyz` says whether it makes progress.

use sd_notify::NotifyState;

/// Notifies systemd that the process is set up. Call it once.
pub fn ready() {
    notify_systemd(NotifyState::Ready);
}

/// Notifies systemd that the process was told to stop and finishes the work in hand.
pub(crate) fn stopping() {
    notify_systemd(NotifyState::Stopping);
}

fn notify_systemd(state: NotifyState<'_>) {
    // Without systemd this does nothing and returns no error.
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd cannot be notified");
    }
}
