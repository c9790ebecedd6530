//! The limits of the api. Every wait for a client or for Postgres ends.

use std::time::Duration;

/// The limits of one api. The defaults are meant for production; tests use shorter ones.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The limits of the HTTP server.
    pub http: web::Limits,
    /// How long Postgres may take for a group of rides, or for the rows that one request reads. Longer than Postgres's own
    /// `lock_timeout` (10 s): if Postgres gives up, the rides are certainly not written; if the api gives up, they may be.
    /// Shorter than `http.request_wait`, so that requests that wait behind a stuck statement still get their turn.
    pub answer_wait: Duration,
    /// The most rides that one statement writes. The rides that have waited longest come first.
    pub group_len_max: usize,
    /// The most rides that may wait for the writing task; the response to any more is 503. Together with the group that is
    /// being written this is fewer than `http.connection_count_max`: if writing is stuck, readers still get connections.
    pub queue_len_max: usize,
    /// The most clients that may watch the history. Each reads from Postgres four times a second.
    pub watcher_count_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            http: web::Limits::default(),
            answer_wait: Duration::from_secs(12),
            group_len_max: 1000,
            queue_len_max: 2000,
            watcher_count_max: 50,
        }
    }
}
