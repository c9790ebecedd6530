//! Booked rides during the faults: clients that retry, and the checks of rides, charges and receipts.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use common::shutdown::{CancellationToken, sleep_or_stop};
use deadpool_postgres::ClientWrapper as Client;
use payments::{Stripe, StripeArgs};
use pglog::Record;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use simulator::Booking;

use crate::history::History;
use crate::world::{PAYMENTS_KEY, World};

/// How long a client waits for a response.
const ANSWER_WAIT: Duration = Duration::from_secs(15);

/// The longest pause between two tries of one request; the mean is half of it.
const RETRY_PAUSE_MAX: f64 = 1.0;

/// The charges and receipts in the log.
#[derive(Default)]
pub(crate) struct BookingRecords {
    charged: HashSet<i64>,
    receipts: HashSet<i64>,
}

impl BookingRecords {
    /// Takes a record of the log. A ride must have one charge, and one receipt after the charge.
    pub fn take(&mut self, record: &Record<'_>, history: &History) {
        let data: Value = serde_json::from_str(record.data).unwrap_or_default();
        let Some(ride_id) = data["ride_id"].as_i64() else {
            return history.violation(&format!("record {} is of no ride: {}", record.offset, record.data));
        };
        let is_right = match (record.object, record.action) {
            ("charge", "create") => self.charged.insert(ride_id),
            ("charge", "decline") => !self.charged.contains(&ride_id),
            ("receipt", "create") => self.charged.contains(&ride_id) && self.receipts.insert(ride_id),
            _ => false,
        };
        if !is_right {
            let (object, action) = (record.object, record.action);
            history.violation(&format!("ride {ride_id} has one more record {object} {action}, or out of turn"));
        }
    }
}

/// Books rides until `stop`, each with its own key. A request is repeated until its response is final.
pub(crate) async fn book_rides(world: Arc<World>, pause: Duration, seed: u64, stop: CancellationToken) {
    let mut rng = StdRng::seed_from_u64(seed);
    let client = reqwest::Client::builder().timeout(ANSWER_WAIT).build().unwrap_or_default();
    while sleep_or_stop(pause.mul_f64(rng.random_range(0.0..2.0)), &stop).await {
        let booking = Booking::random(&mut rng);
        if rng.random_bool(0.2) {
            // A burst of the same request, whose responses are ignored. It must not change the result.
            let urls = [(); 4].map(|()| world.rides_url(&mut rng));
            futures_util::future::join_all(urls.iter().map(|url| booking.send(&client, url, false))).await;
        }
        let Some(body) = insist(&world, &client, &booking, &mut rng, &stop).await else { continue };
        let ride_id = serde_json::from_str::<Value>(&body).ok().and_then(|body| body["ride"]["id"].as_i64());
        match ride_id {
            Some(ride_id) => world.promises.booked(ride_id),
            None => world.history.violation(&format!("a booking was answered with {body}")),
        }
        // A retry must receive the same response.
        if rng.random_bool(0.3)
            && let Some(again) = insist(&world, &client, &booking, &mut rng, &stop).await
            && again != body
        {
            world.history.violation(&format!("a request was answered with {body}, and again with {again}"));
        }
    }
}

/// Sends a booking until its response is final. Returns the body; `None` if `stop` came first: then the completer finishes the
/// request.
async fn insist(
    world: &World,
    client: &reqwest::Client,
    booking: &Booking,
    rng: &mut StdRng,
    stop: &CancellationToken,
) -> Option<String> {
    loop {
        match booking.send(client, &world.rides_url(rng), rng.random_bool(0.2)).await {
            Ok((201, body)) => return Some(body),
            Ok((409 | 500 | 503, _)) | Err(_) => {}
            Ok((status, body)) => {
                world.history.violation(&format!("a sound booking was answered with {status}: {body}"));
                return None;
            }
        }
        if !sleep_or_stop(Duration::from_secs_f64(rng.random_range(0.0..RETRY_PAUSE_MAX)), stop).await {
            return None;
        }
    }
}

/// A text about unfinished requests and undelivered receipts; empty if there are none.
pub(crate) async fn unfinished(client: &Client) -> Result<String> {
    let row = client
        .query_one(
            "-- chaos::bookings::unfinished
             SELECT (SELECT count(*) FROM tracked_operations WHERE status <> 'finished') AS requests,
                    (SELECT count(*) FROM bookings WHERE stripe_charge_id IS NOT NULL)
                    - (SELECT count(*) FROM receipts WHERE delivered_at IS NOT NULL) AS receipts",
            &[],
        )
        .await
        .context("asking what is unfinished")?;
    let (requests, receipts): (i64, i64) = (row.get(0), row.get(1));
    Ok(if (requests, receipts) == (0, 0) {
        String::new()
    } else {
        format!("{requests} requests are not finished, {receipts} receipts not delivered")
    })
}

/// Compares charges, bookings and delivered receipts, when nothing changes any more.
pub(crate) async fn check(world: &World, client: &Client) -> Result<()> {
    let history = &world.history;
    let rows = client
        .query("-- chaos::bookings::check\nSELECT ride_id, stripe_charge_id FROM bookings", &[])
        .await
        .context("reading bookings")?;
    let booked: HashMap<i64, Option<String>> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let mut charged = HashMap::new();
    let (stripe_api_base, key) = (world.payments_url.clone(), Some(PAYMENTS_KEY.to_owned()));
    for charge in Stripe::new(&StripeArgs { stripe_api_base, stripe_api_key: key })?.charges().await? {
        let ride_id = charge.description.as_deref().and_then(|text| text.strip_prefix("Charge for ride "));
        let ride_id = ride_id.and_then(|text| text.parse::<i64>().ok()).context("a charge is of no ride")?;
        if let Some(twice) = charged.insert(ride_id, Some(charge.id)) {
            history.violation(&format!("ride {ride_id} was charged twice, one charge is {twice:?}"));
        }
    }
    if booked != charged {
        let differing: Vec<_> = booked.iter().filter(|(id, charge)| charged.get(id) != Some(charge)).take(10).collect();
        history.violation(&format!("{} rides booked, {} charged: {differing:?}", booked.len(), charged.len()));
    }
    for ride_id in world.promises.booked.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        if !booked.contains_key(ride_id) {
            history.violation(&format!("the booking of ride {ride_id} was confirmed and is gone"));
        }
    }
    let files = std::fs::read_dir(&world.receipts_folder).context("reading the receipts")?;
    let delivered: HashSet<i64> =
        files.filter_map(|file| file.ok()?.file_name().to_str()?.strip_suffix(".eml")?.parse().ok()).collect();
    if delivered != booked.keys().copied().collect() {
        history.violation(&format!("{} rides booked, {} receipts delivered", booked.len(), delivered.len()));
    }
    let twice = "-- chaos::bookings::check
        SELECT count(*) FROM (SELECT resource_id, action FROM audit_records GROUP BY 1, 2 HAVING count(*) > 1) AS twice";
    let twice: i64 = client.query_one(twice, &[]).await.context("reading audit records")?.get(0);
    if twice > 0 {
        history.violation(&format!("{twice} audit records are there twice"));
    }
    Ok(())
}
