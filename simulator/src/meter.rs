//! The meter: counts responses, prints how many came in each second, and prints the bodies of those that are no success.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::summary::Summary;

/// The most refusals that are printed per second. Sixty-four workers may get thousands.
const REFUSALS_MAX: u64 = 5;

/// The longest part of a refusal that is printed, in characters.
const REFUSAL_LEN_MAX: usize = 300;

/// Counts the responses to one kind of request.
pub(crate) struct Meter {
    summary: Mutex<Summary>,
    /// Responses since the last call of [`next_second`](Self::next_second), and refusals among them.
    second_count: AtomicU64,
    refusal_count: AtomicU64,
}

impl Meter {
    pub fn new() -> Self {
        Self { summary: Mutex::new(Summary::new()), second_count: AtomicU64::new(0), refusal_count: AtomicU64::new(0) }
    }

    /// Counts a response, and prints it if it is no success.
    pub fn count(&self, response: &Result<(u16, String)>, latency: Duration) {
        let mut summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        match response {
            Ok((status, body)) => {
                self.second_count.fetch_add(1, Ordering::Relaxed);
                let is_success = matches!(status, 200 | 201);
                summary.answered(is_success, latency);
                if !is_success {
                    self.print(&format!("{status} {body}"));
                }
            }
            Err(error) => {
                summary.unanswered();
                self.print(&format!("no response: {error:#}"));
            }
        }
    }

    /// Prints a refusal on one line, unless this second has had many.
    fn print(&self, refusal: &str) {
        if self.refusal_count.fetch_add(1, Ordering::Relaxed) < REFUSALS_MAX {
            let line = refusal.split_whitespace().collect::<Vec<_>>().join(" ");
            println!("{}", line.chars().take(REFUSAL_LEN_MAX).collect::<String>());
        }
    }

    /// Begins the next second. Returns how many responses came in the last one.
    pub fn next_second(&self) -> u64 {
        let unprinted = self.refusal_count.swap(0, Ordering::Relaxed).saturating_sub(REFUSALS_MAX);
        if unprinted > 0 {
            println!("({unprinted} more refusals in this second)");
        }
        self.second_count.swap(0, Ordering::Relaxed)
    }

    /// The summary of all responses since `started_at`.
    pub fn summary(&self, started_at: Instant) -> Summary {
        let mut summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner).clone();
        summary.elapsed = started_at.elapsed();
        summary
    }
}
