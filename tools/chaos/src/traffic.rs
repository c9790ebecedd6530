//! Rides during the faults: clients of the api that keep every confirmation, and transactions that stage records by SQL and
//! commit late.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use common::shutdown::{CancellationToken, sleep_or_stop};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;

use crate::world::World;

/// How long a client waits for a response.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Answer {
    ride: Ride,
}

#[derive(Deserialize)]
struct Ride {
    id: i64,
    distance_mm: i64,
}

#[derive(Deserialize)]
struct Complaint {
    code: String,
}

/// Posts rides until `stop`, with a mean pause of `pause`.
pub(crate) async fn post_rides(world: Arc<World>, pause: Duration, seed: u64, stop: CancellationToken) {
    let (promises, history) = (&world.promises, &world.history);
    let mut rng = StdRng::seed_from_u64(seed);
    let client = reqwest::Client::builder().timeout(ANSWER_WAIT).build().unwrap_or_default();
    while sleep_or_stop(pause.mul_f64(rng.random_range(0.0..2.0)), &stop).await {
        let distance_mm: i64 = rng.random_range(1..=1_000_000);
        let body = format!(r#"{{"distance":{}.{:03}}}"#, distance_mm / 1000, distance_mm % 1000);
        let request = client.post(world.rides_url(&mut rng)).header("content-type", "application/json").body(body);
        let answer = async {
            let response = request.send().await?;
            Ok::<_, reqwest::Error>((response.status().as_u16(), response.bytes().await?))
        };
        match answer.await {
            Ok((201, body)) => match serde_json::from_slice::<Answer>(&body) {
                Ok(Answer { ride }) if ride.distance_mm == distance_mm => {
                    promises.confirm(ride.id, ride.distance_mm, history);
                }
                _ => history.violation(&format!("a ride of {distance_mm} mm was answered with {body:?}")),
            },
            Ok((503, body)) => match serde_json::from_slice::<Complaint>(&body) {
                Ok(complaint) if complaint.code == "overloaded" => {
                    promises.refused_count.fetch_add(1, Ordering::Relaxed);
                }
                _ => promises.unknown(),
            },
            Ok((status, body)) => history.violation(&format!("a sound request was answered with {status}: {body:?}")),
            Err(_) => promises.unknown(),
        }
    }
}

/// Writes `ride_count` rides and their records in a transaction that stays open for `open`.
///
/// # Errors
/// The server went away. The rides may be written or not.
pub(crate) async fn commit_late(world: &World, ride_count: u32, open: Duration, mut rng: StdRng) -> Result<()> {
    let (promises, mut client) = (&world.promises, world.connect().await?);
    let tx = client.transaction().await.context("beginning late")?;
    let mut rides = Vec::new();
    for _ in 0..ride_count {
        let distance_mm: i64 = rng.random_range(1..=1_000_000);
        let row = tx
            .query_one(
                "-- chaos::commit_late
                 WITH written AS (INSERT INTO rides (distance_mm) VALUES ($1) RETURNING id, distance_mm), staged AS (
                     INSERT INTO staged_log_records (object, action, data, traceparent)
                     SELECT 'ride', 'create', format('{\"id\":%s,\"distance_mm\":%s}', id, distance_mm)::json,
                            format('00-%s-%s-00', lpad(to_hex(id), 32, '0'), lpad(to_hex(id), 16, '0')) FROM written
                 )
                 SELECT id FROM written",
                &[&distance_mm],
            )
            .await
            .context("writing a ride late")?;
        rides.push((row.get(0), distance_mm));
        tokio::time::sleep(open / ride_count).await;
    }
    if rng.random_bool(0.2) {
        return tx.rollback().await.context("rolling back late");
    }
    if let Err(error) = tx.commit().await {
        rides.iter().for_each(|_| promises.unknown());
        return Err(error).context("committing late");
    }
    rides.into_iter().for_each(|(id, distance_mm)| promises.confirm(id, distance_mm, &world.history));
    Ok(())
}
