//! Booked rides, from four kinds of clients: they send a request once, send it several times at once, retry it after a
//! failure, or leave after a failure.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::RngExt;
use rand::rngs::StdRng;
use reqwest::Client;
use tokio::time::sleep;

/// The user who books.
const USER: &str = "user@example.com";

/// The share of requests that ask to fail before their charge.
const RAISE_RATE: f64 = 0.5;

/// The share of the failing requests whose clients leave. The completer finishes these requests.
const LEAVE_RATE: f64 = 0.5;

/// The share of requests that are sent several times at once.
const BURST_RATE: f64 = 0.1;

/// Copies of a request that is sent several times at once.
const BURST_LEN: usize = 5;

/// Retries before a client gives up.
const RETRY_COUNT_MAX: u32 = 8;

/// The pause before the first retry; it doubles.
const RETRY_WAIT: Duration = Duration::from_millis(50);

/// A request for a booked ride, which may be sent any number of times.
#[derive(Debug, Clone)]
pub struct Booking {
    key: String,
    journey: String,
}

impl Booking {
    /// A random journey, with an idempotency key that no request had before.
    pub fn random(rng: &mut StdRng) -> Self {
        let mut degrees = |most: f64| rng.random_range(-most..=most);
        let (origin_lat, origin_lon) = (degrees(80.0), degrees(180.0));
        // A target some kilometres away.
        let (target_lat, target_lon) = (origin_lat + degrees(0.05), (origin_lon + degrees(0.05)).clamp(-180.0, 180.0));
        Self {
            key: format!("{:032x}", rng.random::<u128>()),
            journey: format!(
                "origin_lat={origin_lat:.6}&origin_lon={origin_lon:.6}&target_lat={target_lat:.6}&target_lon={target_lon:.6}"
            ),
        }
    }

    /// Sends the request once. Returns the status and the body of the response.
    ///
    /// # Errors
    /// No response came.
    pub async fn send(&self, client: &Client, rides_url: &str, raise_error: bool) -> Result<(u16, String)> {
        let raise_error = if raise_error { "&raise_error=true" } else { "" };
        let response = client
            .post(rides_url)
            .header("authorization", USER)
            .header("idempotency-key", &self.key)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("{}{raise_error}", self.journey))
            .send()
            .await
            .context("booking a ride")?;
        let status = response.status().as_u16();
        Ok((status, response.text().await.context("reading the response")?))
    }

    /// Sends the request until it gets a final response. No response, 409 and 5xx mean: retry later, with the same key.
    ///
    /// # Errors
    /// No response to the last of many retries came.
    pub async fn insist(&self, client: &Client, rides_url: &str) -> Result<(u16, String)> {
        let mut wait = RETRY_WAIT;
        for _ in 0..RETRY_COUNT_MAX {
            match self.send(client, rides_url, false).await {
                Ok((status, body)) if status != 409 && status < 500 => return Ok((status, body)),
                _ => sleep(wait).await,
            }
            wait *= 2;
        }
        self.send(client, rides_url, false).await
    }
}

/// Books a ride as a client of a random kind. Returns the last response.
///
/// # Errors
/// No response came.
pub(crate) async fn book(client: &Client, rides_url: &str, rng: &mut StdRng) -> Result<(u16, String)> {
    let booking = Booking::random(rng);
    if rng.random_bool(BURST_RATE) {
        let burst = (0..BURST_LEN).map(|_| booking.send(client, rides_url, false));
        futures_util::future::join_all(burst).await;
    } else if rng.random_bool(RAISE_RATE) {
        let first = booking.send(client, rides_url, true).await;
        if rng.random_bool(LEAVE_RATE) {
            return first;
        }
    }
    booking.insist(client, rides_url).await
}
