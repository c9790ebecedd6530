//! The traffic of manifests: for some rides that the api has accepted, a manifest is filed at the container. A client sends it
//! again, with its key, until the container has decided.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use common::backoff::Backoff;
use common::shutdown::{CancellationToken, sleep_or_stop};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Client;
use serde_json::Value;
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::config::Config;
use crate::manifest::Manifest;

/// Manifests in flight at once. While there are so many, further rides get none.
const IN_FLIGHT_MAX: u32 = 32;

/// How often a manifest is sent before it is left waiting.
const SEND_COUNT_MAX: u32 = 10;

/// The longest pause between two requests about one manifest.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);

/// The seed of the manifests: far from those of rides and wallets.
const SEED: u64 = 1 << 34;

/// The manifests of a run, by what the container said last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Manifests {
    /// All that were sent.
    pub filed_count: u64,
    /// Stored in all destinations that want them.
    pub committed_count: u64,
    /// Refused, and stored nowhere.
    pub rejected_count: u64,
    /// Accepted and not decided: a destination is slow or away.
    pub waiting_count: u64,
    /// The container did not respond, or could not accept it.
    pub unanswered_count: u64,
}

impl Manifests {
    fn add(&mut self, fate: Fate) {
        self.filed_count += 1;
        *match fate {
            Fate::Committed => &mut self.committed_count,
            Fate::Rejected => &mut self.rejected_count,
            Fate::Waiting => &mut self.waiting_count,
            Fate::Unanswered => &mut self.unanswered_count,
        } += 1;
    }
}

impl fmt::Display for Manifests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { filed_count, committed_count, rejected_count, waiting_count, unanswered_count } = self;
        write!(
            f,
            "filed {filed_count}, committed {committed_count}, rejected {rejected_count}, waiting {waiting_count}, \
             unanswered {unanswered_count}"
        )
    }
}

/// The state of a manifest after a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Committed,
    Rejected,
    Waiting,
    Unanswered,
}

/// Files manifests.
pub(crate) struct Filing {
    client: Client,
    container_url: String,
    share: f64,
    rng: Mutex<StdRng>,
    permits: Arc<Semaphore>,
    sum: Mutex<Manifests>,
    stop: CancellationToken,
}

impl Filing {
    /// Manifests as the flags say, until `stop`. `None`: no ride is to have one.
    pub fn new(config: &Config, client: Client, seed: u64, stop: CancellationToken) -> Option<Arc<Self>> {
        let filing = Self {
            client,
            container_url: config.container_url(),
            share: config.manifests,
            rng: Mutex::new(StdRng::seed_from_u64(seed.wrapping_add(SEED))),
            permits: Arc::new(Semaphore::new(IN_FLIGHT_MAX as usize)),
            sum: Mutex::default(),
            stop,
        };
        (config.manifests > 0.0).then(|| Arc::new(filing))
    }

    /// Files a manifest for the ride in this response of the api, by chance, while the caller goes on.
    pub fn maybe_file(self: &Arc<Self>, accepted: &str) {
        let ride = serde_json::from_str::<Value>(accepted).ok();
        let Some(ride_id) = ride.and_then(|body| body["ride"]["id"].as_i64()) else { return };
        let manifest = {
            let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
            // The dice are thrown in any case, so that a seed draws the same manifests whether one is left out or not.
            let manifest = Manifest::random(ride_id, &mut rng);
            rng.random_bool(self.share).then_some(manifest)
        };
        let Some((manifest, permit)) = manifest.zip(Arc::clone(&self.permits).try_acquire_owned().ok()) else { return };
        let filing = Arc::clone(self);
        tokio::spawn(async move {
            let fate = filing.insist(&manifest).await;
            filing.sum.lock().unwrap_or_else(PoisonError::into_inner).add(fate);
            drop(permit);
        });
    }

    /// Waits for the manifests that are in flight, and sums up.
    ///
    /// # Errors
    /// None: the semaphore is never closed.
    pub async fn end(&self) -> Result<Manifests> {
        let _all = self.permits.acquire_many(IN_FLIGHT_MAX).await.context("waiting for manifests")?;
        Ok(*self.sum.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends the manifest until the container has decided, with pauses. The response to a repetition is the unit's present state.
    async fn insist(&self, manifest: &Manifest) -> Fate {
        let (mut backoff, mut fate) = (Backoff::up_to(RETRY_WAIT_MAX), Fate::Unanswered);
        for _ in 0..SEND_COUNT_MAX {
            fate = match (self.send(manifest).await, fate) {
                (Fate::Committed, _) => return Fate::Committed,
                (Fate::Rejected, _) => return Fate::Rejected,
                // It has been accepted, also if a later response is missing.
                (Fate::Waiting, _) | (_, Fate::Waiting) => Fate::Waiting,
                _ => Fate::Unanswered,
            };
            if !sleep_or_stop(backoff.next_wait(), &self.stop).await {
                break;
            }
        }
        fate
    }

    async fn send(&self, manifest: &Manifest) -> Fate {
        let response = async {
            let response = manifest.request(&self.client, &self.container_url).send().await.context("filing")?;
            let status = response.status().as_u16();
            Ok::<_, anyhow::Error>((status, response.text().await.context("reading the response")?))
        };
        let response = response.await;
        let status = response.as_ref().map_or(0, |(status, _)| *status);
        monitor::counter!("rocket_rides_answers_total", "status" => status.to_string()).increment(1);
        match response {
            Ok((status, body)) => {
                info!(status, body, "response about a manifest");
                fate_of(status, &body)
            }
            Err(error) => {
                warn!(error = format!("{error:#}"), "no response about a manifest");
                Fate::Unanswered
            }
        }
    }
}

/// A response with a unit tells its state. Without one, a request is refused for good if it is at fault.
fn fate_of(status: u16, body: &str) -> Fate {
    let unit: Value = serde_json::from_str(body).unwrap_or_default();
    match unit["state"].as_str() {
        Some("committed") => Fate::Committed,
        Some("rejected" | "dropped") => Fate::Rejected,
        Some(_) => Fate::Waiting,
        None if (400..500).contains(&status) => Fate::Rejected,
        None => Fate::Unanswered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_the_unit_decides_and_not_the_status() {
        for (status, body, fate) in [
            (200, r#"{"uow":1,"state":"committed"}"#, Fate::Committed),
            (422, r#"{"uow":1,"state":"rejected"}"#, Fate::Rejected),
            (429, r#"{"uow":1,"state":"fail_queued"}"#, Fate::Waiting),
            (503, r#"{"uow":1,"state":"queued"}"#, Fate::Waiting),
            (202, r#"{"uow":1,"state":"fanned_out"}"#, Fate::Waiting),
            (409, r#"{"error":"…","code":"key_mismatch"}"#, Fate::Rejected),
            (503, r#"{"error":"…","code":"unavailable"}"#, Fate::Unanswered),
            (502, "<html>", Fate::Unanswered),
        ] {
            assert_eq!(fate_of(status, body), fate, "{status} {body}");
        }
    }
}
