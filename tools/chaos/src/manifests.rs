//! Clients of the container during the faults: they file manifests, some of which a destination refuses, and read them. Some
//! manifests have a key, and are sent again until the container names their unit.

use std::sync::Arc;
use std::time::Duration;

use common::shutdown::{CancellationToken, sleep_or_stop};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Client;
use serde_json::{Value, json};
use simulator::Manifest;

use crate::manifest_ledger::FILED_AS;
use crate::world::{REFUSED_NOTE, World};

/// How long a client waits for a response: longer than the container waits for the verdict.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// The longest pause between two tries of one request; the mean is half of it.
const RETRY_PAUSE_MAX: f64 = 1.0;

/// Rides with manifests. A third of them is about the first.
const RIDE_COUNT: i64 = 40;

/// The longest photo, in bytes.
const PHOTO_LEN_MAX: usize = 40_000;

/// The share of manifests that are sent with a key.
const KEY_RATE: f64 = 0.7;

/// The share of clients that use their key for another manifest after an unclear response.
const CHANGED_RATE: f64 = 0.1;

/// Files and reads manifests until `stop`.
pub(crate) async fn file_manifests(world: Arc<World>, pause: Duration, seed: u64, stop: CancellationToken) {
    let mut rng = StdRng::seed_from_u64(seed);
    let client = Client::builder().timeout(ANSWER_WAIT).no_proxy().build().unwrap_or_default();
    while sleep_or_stop(pause.mul_f64(rng.random_range(0.0..2.0)), &stop).await {
        let ride_id = ride(&mut rng);
        if rng.random_bool(0.3) {
            read(&world, &client, ride_id, &mut rng).await;
        }
        let (manifest, is_refused, trace_id) = random(ride_id, &mut rng);
        let sending = Sending { world: &world, client: &client, manifest: &manifest, is_refused, trace_id };
        let mut response = sending.send(&mut rng).await;
        if manifest.key.is_none() {
            continue;
        }
        while let Response::Unclear = response {
            if rng.random_bool(CHANGED_RATE) {
                // The first manifest may have taken the key all the same. Then this one is refused.
                let (other, trace_id) = sending.other(&mut rng);
                Sending { manifest: &other, trace_id, ..sending }.send(&mut rng).await;
                break;
            }
            if !sleep_or_stop(Duration::from_secs_f64(rng.random_range(0.0..RETRY_PAUSE_MAX)), &stop).await {
                return;
            }
            response = sending.send(&mut rng).await;
        }
        match response {
            Response::Unit => sending.repeat(&mut rng).await,
            Response::KeyReused => {
                world.history.violation(&format!("C1: {:?} was sent again, and refused", manifest.document));
            }
            Response::Unclear => {}
        }
    }
}

fn ride(rng: &mut StdRng) -> i64 {
    if rng.random_bool(0.33) { 1 } else { rng.random_range(1..=RIDE_COUNT) }
}

/// A manifest of this ride, whether a destination refuses it, and the id of its trace.
fn random(ride_id: i64, rng: &mut StdRng) -> (Manifest, bool, u128) {
    let trace_id: u128 = rng.random();
    let mut manifest = Manifest::random(ride_id, rng);
    manifest.document[FILED_AS] = json!(format!("{trace_id:032x}"));
    // The board refuses passengers that are no list.
    let mut is_refused = !manifest.document["passengers"].is_array();
    if manifest.photo.is_some() {
        // Each photo is another one.
        let mut photo = vec![0; rng.random_range(1..PHOTO_LEN_MAX)];
        rng.fill(photo.as_mut_slice());
        manifest.photo = Some(photo);
    }
    if rng.random_bool(0.05) {
        // The row is refused, after all others have stored.
        manifest.document["note"] = json!(REFUSED_NOTE);
        is_refused = true;
    }
    if !rng.random_bool(KEY_RATE) {
        manifest.key = None;
    }
    (manifest, is_refused, trace_id)
}

/// A manifest that is being sent.
#[derive(Clone, Copy)]
struct Sending<'a> {
    world: &'a World,
    client: &'a Client,
    manifest: &'a Manifest,
    is_refused: bool,
    trace_id: u128,
}

/// The meaning of a response.
enum Response {
    /// It names the unit.
    Unit,
    /// The key belongs to another manifest.
    KeyReused,
    /// No response came, or it leaves open whether there is a unit.
    Unclear,
}

impl Sending<'_> {
    /// Sends the manifest once, to one of the containers.
    async fn send(&self, rng: &mut StdRng) -> Response {
        let (containers, history) = (&self.world.containers, &self.world.history);
        containers.ledger.send(self.trace_id, self.manifest, self.is_refused);
        let traceparent = format!("00-{:032x}-{:016x}-00", self.trace_id, rng.random_range(1..u64::MAX));
        let request = self.manifest.request(self.client, containers.url(rng)).header("traceparent", traceparent);
        let Ok(response) = request.send().await else { return Response::Unclear };
        let status = response.status().as_u16();
        let location = response.headers().get("location").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let Ok(body) = response.bytes().await else { return Response::Unclear };
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        let Some((uow, state)) = json["uow"].as_i64().zip(json["state"].as_str()) else {
            return match (status, json["code"].as_str()) {
                (409, Some("key_mismatch")) => Response::KeyReused,
                (503, Some(_)) => Response::Unclear,
                _ => {
                    history.violation(&format!("{:?} was answered with {status}: {body:?}", self.manifest.document));
                    Response::Unclear
                }
            };
        };
        let is_right = match state {
            "committed" => status == 200,
            "rejected" => (400..500).contains(&status),
            "queued" | "fanned_out" | "rolling_back" => matches!(status, 202 | 503),
            _ => (400..600).contains(&status),
        };
        if !is_right || location != Some(format!("/units/{uow}")) {
            history.violation(&format!("unit {uow} is {state}, and the response {status} with {location:?}: {body:?}"));
        }
        containers.ledger.told(self.trace_id, uow, state, history);
        Response::Unit
    }

    /// Another manifest with the same key.
    fn other(&self, rng: &mut StdRng) -> (Manifest, u128) {
        let (mut other, trace_id): (_, u128) = (self.manifest.clone(), rng.random());
        other.document[FILED_AS] = json!(format!("{trace_id:032x}"));
        (other, trace_id)
    }

    /// Sends a manifest again whose unit is known, and another one with its key.
    async fn repeat(&self, rng: &mut StdRng) {
        if rng.random_bool(0.3)
            && let Response::KeyReused = self.send(rng).await
        {
            self.world.history.violation(&format!("C1: {:?} was sent again, and refused", self.manifest.document));
        }
        let (other, trace_id) = self.other(rng);
        let sending = Sending { manifest: &other, trace_id, ..*self };
        if rng.random_bool(0.2)
            && let Response::Unit = sending.send(rng).await
        {
            self.world.history.violation(&format!("C1: {other:?} has the key of another manifest, and got a unit"));
        }
    }
}

/// Reads the manifest of a ride.
async fn read(world: &World, client: &Client, ride_id: i64, rng: &mut StdRng) {
    let (containers, history) = (&world.containers, &world.history);
    let min_uow = containers.ledger.newest(ride_id);
    let url = format!("{}/manifests/{ride_id}", containers.url(rng));
    let Ok(response) = client.get(&url).send().await else { return };
    let status = response.status().as_u16();
    let Ok(body) = response.bytes().await else { return };
    let json: Value = serde_json::from_slice(&body).unwrap_or_default();
    let is_right = match status {
        200 => json["ride_id"] == ride_id && containers.ledger.shown(&json, min_uow),
        404 => min_uow.is_none() && json["code"] == "subject_unknown",
        503 => true,
        _ => false,
    };
    if !is_right {
        let known = format!("clients know of unit {min_uow:?}");
        history.violation(&format!("GET {url} was answered with {status}: {body:?}; {known}"));
    }
}
