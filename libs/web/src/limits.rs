//! How much, and how long, the api puts up with. Whatever a client or Postgres does, each wait here ends.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Files that are no client's connection: Postgres, the listening socket, the log, the runtime's own.
const OTHER_FILE_COUNT_MAX: u64 = 64;

/// The bounds of one server. The defaults serve; tests take shorter ones.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections. Further clients wait in the kernel's queue until one is closed. 4096 connections with full
    /// buffers take some 200 MB.
    pub connection_count_max: usize,
    /// How long a client may take for a request's header, from its first byte on; on a new connection, from the start.
    pub header_wait: Duration,
    /// How long a connection may be idle between two requests. Longer than the 60 s after which common proxies and
    /// balancers close theirs: the side that closes first must not be the one that is being sent a request.
    pub idle_wait: Duration,
    /// How long a client may take for a whole body. Answered with 408.
    pub body_wait: Duration,
    /// How long a request may take in all, from its header to its answer. Answered with 503.
    pub request_wait: Duration,
    /// How long a client may take to read an answer that does not fit into the socket's buffer.
    pub response_wait: Duration,
    /// How long Postgres may take for a group of rides, or for what is read for one request. Longer than its own
    /// `lock_timeout` (10 s): what Postgres gives up is known not to be written, what the api gives up is not. Shorter
    /// than `request_wait`, so that those who wait behind a stuck statement still get their turn.
    pub answer_wait: Duration,
    /// Rides a statement writes at most. Those that wait longest come first.
    pub group_len_max: usize,
    /// Rides that may wait for the writing task; more are refused with 503. Together with the group in hand it stays below
    /// `connection_count_max`: if writing is stuck, connections are left for those who read.
    pub queue_len_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connection_count_max: 4096,
            header_wait: Duration::from_secs(10),
            idle_wait: Duration::from_secs(75),
            body_wait: Duration::from_secs(10),
            request_wait: Duration::from_secs(15),
            response_wait: Duration::from_secs(30),
            answer_wait: Duration::from_secs(12),
            group_len_max: 1000,
            queue_len_max: 2000,
        }
    }
}

impl Limits {
    /// The same, with no more connections than this process may have open files. Raises the soft limit if it may:
    /// shells commonly set it to 1024, far below the hard one.
    #[must_use]
    pub fn within_open_files(mut self) -> Self {
        let wanted = self.connection_count_max as u64 + OTHER_FILE_COUNT_MAX;
        let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return self };
        let raised = wanted.min(hard);
        let allowed = match soft < raised && setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_ok() {
            true => raised,
            false => soft,
        };
        let left = allowed.saturating_sub(OTHER_FILE_COUNT_MAX).max(1);
        self.connection_count_max = self.connection_count_max.min(usize::try_from(left).unwrap_or(usize::MAX));
        self
    }
}
