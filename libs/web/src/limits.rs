//! The limits of a server. Every wait for a client ends.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Open files that are not a client's connection: Postgres, the listening socket, the log, the runtime's own.
const OTHER_FILE_COUNT_MAX: u64 = 64;

/// The limits of one server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections. Further clients wait in the kernel's queue until a connection is closed. 4096 connections with
    /// full buffers take some 200 MB.
    pub connection_count_max: usize,
    /// How long a client may take to send a request's header, from its first byte on; on a new connection, from the
    /// start.
    pub header_wait: Duration,
    /// How long a connection may be idle between two requests. Common proxies and balancers close an idle connection
    /// after 60 s. This is longer: a server that closed first could do so while a proxy sends it the next request.
    pub idle_wait: Duration,
    /// How long a client may take to send a whole body, where the handler reads it with [`read_body`](crate::read_body).
    pub body_wait: Duration,
    /// How long a request may take in all, from its header to the header of its response. A server-sent event stream may
    /// last longer.
    pub request_wait: Duration,
    /// How long a client may take to read a response that does not fit into the socket's buffer. Each part of a stream
    /// has this time for itself.
    pub response_wait: Duration,
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
        }
    }
}

impl Limits {
    /// The same limits with at most as many connections as this process may open files, of which the handlers need
    /// `handler_count_max` for connections of their own. Raises the soft limit as far as the hard limit allows: shells
    /// commonly set the soft limit to 1024, far below the hard limit.
    #[must_use]
    pub fn within_open_files(mut self, handler_count_max: usize) -> Self {
        let handler_count_max = handler_count_max as u64;
        let wanted = self.connection_count_max as u64 + OTHER_FILE_COUNT_MAX + handler_count_max;
        let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return self };
        let raised = wanted.min(hard);
        let is_raised = soft < raised && setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_ok();
        let allowed = if is_raised { raised } else { soft };
        let left = allowed.saturating_sub(OTHER_FILE_COUNT_MAX);
        // Where files are few, clients keep half of them.
        let left = (left - handler_count_max.min(left / 2)).max(1);
        self.connection_count_max = self.connection_count_max.min(usize::try_from(left).unwrap_or(usize::MAX));
        self
    }
}
