//! One unbooked ride.

use anyhow::{Context, Result};
use reqwest::Client;

/// Posts one ride. Returns the status and the body.
///
/// # Errors
/// No response came.
pub async fn run_once(client: &Client, rides_url: &str, distance_m: f64) -> Result<(u16, String)> {
    let response = client
        .post(rides_url)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!("distance={distance_m:.3}"))
        .send()
        .await
        .context("posting a ride")?;
    let status = response.status().as_u16();
    Ok((status, response.text().await.context("reading the response")?))
}
