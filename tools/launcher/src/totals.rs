//! The part of `GET /totals` that the board and the summary line show.

use anyhow::Result;
use serde::Deserialize;

/// The response of the api.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Totals {
    pub sql: Sum,
    /// The records that have an offset, in all partitions.
    pub head: i64,
    /// Every registered consumer, by name. Its figures are sums over the partitions.
    pub consumers: Vec<ConsumerTotal>,
    /// Whether every consumer folds all partitions, is at the head of each, and has SQL's count and sum.
    pub converged: bool,
}

/// SQL's own count and sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct Sum {
    pub ride_count: i64,
    pub total_distance_mm: i64,
}

/// One consumer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct ConsumerTotal {
    pub name: String,
    pub missing_partitions: Vec<i32>,
    pub ride_count: i64,
    pub total_distance_mm: i64,
    pub last_offset: i64,
    pub lag: i64,
    pub duplicate_count: i64,
    pub healed_count: i64,
    pub crash_count: i64,
    pub dead_letter_count: i64,
}

impl Totals {
    /// Asks the api.
    ///
    /// # Errors
    /// The api does not answer, or with something else.
    pub async fn ask(client: &reqwest::Client, url: &str) -> Result<Self, reqwest::Error> {
        client.get(url).send().await?.error_for_status()?.json().await
    }
}
