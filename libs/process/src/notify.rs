//! What a process tells systemd, where systemd has started it: that it is ready, and that it stops. Users: every process.
//!
//! Ready means here that it is set up: flags are sound, sockets are open, signals are caught. It does not mean that Postgres
//! or Redis can be reached: those are waited for, and `/readyz` tells.

use sd_notify::NotifyState;

/// To be said once, when a process is set up.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// To be said when it has been told to stop, and finishes what it has in hand.
pub(crate) fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    // Without systemd there is nobody to tell, and that is no error.
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}
