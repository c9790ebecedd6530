//! The summary of the traffic: how many requests were accepted, and how long the responses took.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::manifests::Manifests;

/// One summary for each kind of request.
#[derive(Debug, Clone)]
pub struct Report {
    /// Rides. `None`: no worker posted any.
    pub rides: Option<Summary>,
    /// Manifests. `None`: no ride was to have one.
    pub manifests: Option<Manifests>,
    /// Reads of wallets. `None`: no worker read any.
    pub wallet_reads: Option<Summary>,
    /// Credits, debits and transfers. `None`: no worker wrote any.
    pub wallet_writes: Option<Summary>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |name: &str, summary: Option<&dyn fmt::Display>| Some(format!("{name}{}", summary?));
        let lines = [
            line("", self.rides.as_ref().map(|rides| rides as _)),
            line("manifests: ", self.manifests.as_ref().map(|manifests| manifests as _)),
            line("wallet reads: ", self.wallet_reads.as_ref().map(|reads| reads as _)),
            line("wallet writes: ", self.wallet_writes.as_ref().map(|writes| writes as _)),
        ];
        let lines: Vec<String> = lines.into_iter().flatten().collect();
        f.write_str(&lines.join("\n"))
    }
}

/// The api's responses, counted.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Requests sent.
    pub sent_count: u64,
    /// Responses that accept the request: with status 201, and for wallets 200.
    pub accepted_count: u64,
    /// Responses with another status, and requests without a response.
    pub refused_count: u64,
    /// How long the run took.
    pub elapsed: Duration,
    /// Latency of the requests that got a response, in µs.
    latency_us: Histogram<u64>,
}

impl Summary {
    pub(crate) fn new() -> Self {
        // Up to a minute, to three digits.
        let latency_us = Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are in order");
        Self { sent_count: 0, accepted_count: 0, refused_count: 0, elapsed: Duration::ZERO, latency_us }
    }

    pub(crate) fn answered(&mut self, accepted: bool, latency: Duration) {
        self.sent_count += 1;
        if accepted {
            self.accepted_count += 1;
        } else {
            self.refused_count += 1;
        }
        self.latency_us.saturating_record(latency.as_micros() as u64);
    }

    pub(crate) fn unanswered(&mut self) {
        self.sent_count += 1;
        self.refused_count += 1;
    }

    /// The latency that `quantile` (0 to 1) of the responses did not exceed, in ms.
    pub fn latency_ms(&self, quantile: f64) -> f64 {
        self.latency_us.value_at_quantile(quantile) as f64 / 1000.0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let elapsed_s = self.elapsed.as_secs_f64();
        write!(
            f,
            "sent {}, accepted {}, refused {} in {:.1} s ({:.1}/s); latency p50 {:.2} ms, p99 {:.2} ms",
            self.sent_count,
            self.accepted_count,
            self.refused_count,
            elapsed_s,
            self.sent_count as f64 / elapsed_s.max(0.001),
            self.latency_ms(0.5),
            self.latency_ms(0.99),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_and_ranks() {
        let mut summary = Summary::new();
        (1..=98).for_each(|ms| summary.answered(true, Duration::from_millis(ms)));
        summary.answered(false, Duration::from_secs(3600));
        summary.unanswered();
        summary.elapsed = Duration::from_secs(10);
        let text = summary.to_string();
        assert!(text.starts_with("sent 100, accepted 98, refused 2 in 10.0 s (10.0/s); latency p50 5"), "{text}");
    }
}
