//! The end of the traffic: a signal, a time, or a count of requests.

use std::sync::atomic::{AtomicU64, Ordering};

use common::shutdown::CancellationToken;

/// Workers of all kinds end together.
pub(crate) struct End {
    left_count: AtomicU64,
    /// Cancelled at the signal or after the time.
    pub stop: CancellationToken,
}

impl End {
    /// After `count` requests, or when `stop` is cancelled.
    pub fn new(count: Option<u64>, stop: CancellationToken) -> Self {
        Self { left_count: AtomicU64::new(count.unwrap_or(u64::MAX)), stop }
    }

    /// Takes one request from the count. `false`: no request is to follow.
    pub fn may_start(&self) -> bool {
        let take = |left_count: u64| left_count.checked_sub(1);
        !self.stop.is_cancelled() && self.left_count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}
