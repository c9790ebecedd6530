//! The fixture of the booking tests: a world with an api that books rides, and a payment processor.

use std::time::Duration;

use booking::Patience;
use payments::Stripe;
use serde_json::Value;
use tests::{Payments, World};

use crate::api::Api;

pub const USER: &str = "user@example.com";
pub const BAD_SOURCE: &str = "user-bad-source@example.com";
pub const KEY: &str = "3b1cb8c2-0f0d-4f4f-9d4e-5a4f8a1f0c11";
pub const JOURNEY: &str = "origin_lat=52.52&origin_lon=13.405&target_lat=48.8566&target_lon=2.3522";

/// A world with an api that books rides, and a payment processor.
pub struct BookingFixture {
    pub world: World,
    pub payments: Payments,
    pub api: Api,
    pub http: reqwest::Client,
}

/// Names and values of request headers.
pub type Headers<'a> = &'a [(&'a str, &'a str)];

/// A response: status, whether it is marked as replayed, body.
pub type Response = (u16, bool, String);

impl BookingFixture {
    pub async fn open() -> Self {
        let payments = Payments::start().await;
        let stripe = payments.stripe();
        Self::open_with(payments, stripe).await
    }

    pub async fn open_with(payments: Payments, stripe: Stripe) -> Self {
        let world = World::new().await;
        let api = Api::start_with(&world, stripe).await;
        Self { world, payments, api, http: reqwest::Client::new() }
    }

    pub async fn book(&self, key: &str) -> Response {
        self.post(&[("authorization", USER), ("idempotency-key", key)], JOURNEY).await
    }

    pub async fn post(&self, headers: Headers<'_>, body: &str) -> Response {
        let mut request = self.http.post(self.api.url("/rides"));
        request = request.header("content-type", "application/x-www-form-urlencoded").body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        let is_replayed = response.headers().get("idempotent-replayed").is_some_and(|value| value == "true");
        (response.status().as_u16(), is_replayed, response.text().await.unwrap())
    }

    /// Posts a request. Returns the status and the error text of the response.
    pub async fn error(&self, headers: Headers<'_>, body: &str) -> (u16, String) {
        let (status, _, body) = self.post(headers, body).await;
        (status, serde_json::from_str::<Value>(&body).unwrap()["error"].as_str().unwrap().to_owned())
    }

    pub async fn number(&self, query: &str) -> i64 {
        self.world.number(query).await
    }

    pub async fn execute(&self, statement: &str) {
        self.world.client().batch_execute(statement).await.unwrap();
    }

    pub async fn recovery_point(&self) -> (String, String) {
        let query = "SELECT recovery_point, status FROM tracked_operations";
        let row = self.world.client().query_one(query, &[]).await.unwrap();
        (row.get(0), row.get(1))
    }

    /// Posts a request that fails before its charge.
    pub async fn stop_at_ride_created(&self, key: &str) {
        let raising = format!("{JOURNEY}&raise_error=true");
        let headers = [("authorization", USER), ("idempotency-key", key)];
        assert_eq!(self.post(&headers, &raising).await.0, 500);
    }

    /// Posts a request, and then undoes its last phase.
    pub async fn stop_at_charge_created(&self, key: &str) {
        assert_eq!(self.book(key).await.0, 201);
        self.execute(
            "DELETE FROM staged_log_records WHERE object = 'receipt';
             DELETE FROM audit_records WHERE action = 'receipt.staged';
             UPDATE tracked_operations SET status = 'failed', recovery_point = 'charge_created', result = NULL",
        )
        .await;
    }

    /// Asserts that there are one ride, one charge, one receipt, and one record of each.
    pub async fn assert_booked_once(&self) {
        let rides = self.number("SELECT count(*) FROM rides").await;
        let bookings = self.number("SELECT count(*) FROM bookings WHERE stripe_charge_id IS NOT NULL").await;
        let charges = self.payments.charges().await;
        assert_eq!((rides, bookings, charges.len()), (1, 1, 1));
        let row = self.world.client().query_one("SELECT stripe_charge_id FROM bookings", &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), charges[0].id);
        for (object, action) in [("ride", "create"), ("charge", "create"), ("receipt", "create")] {
            let query =
                format!("SELECT count(*) FROM staged_log_records WHERE object = '{object}' AND action = '{action}'");
            assert_eq!(self.number(&query).await, 1, "{object} {action}");
        }
        for action in ["ride.created", "charge.created", "receipt.staged"] {
            let query = format!("SELECT count(*) FROM audit_records WHERE action = '{action}'");
            assert_eq!(self.number(&query).await, 1, "{action}");
        }
    }

    /// A desk of the completer.
    pub fn desk(&self, stripe: Stripe) -> booking::Desk {
        let config = self.world.database_url_of("completer").parse().unwrap();
        booking::Desk::new(
            connect::postgres::pool(&config, "completer", booking::SIDE_BY_SIDE_MAX + 1).unwrap(),
            stripe,
        )
    }

    /// Runs one round of the completer, for which every request is old enough.
    pub async fn complete(&self) -> (usize, usize) {
        let desk = self.desk(self.payments.stripe());
        let completion = booking::complete(&desk, &impatient(), 100).await.unwrap();
        (completion.replies.len(), completion.errors.len())
    }

    /// Moves all requests into the past by this interval.
    pub async fn age(&self, by: &str) {
        self.execute(&format!(
            "UPDATE tracked_operations SET created_at = created_at - INTERVAL '{by}',
                 started_at = started_at - INTERVAL '{by}', timeout_at = timeout_at - INTERVAL '{by}',
                 expires_at = expires_at - INTERVAL '{by}', finished_at = finished_at - INTERVAL '{by}'"
        ))
        .await;
    }
}

/// The patience of a completer for which every request is old enough.
pub fn impatient() -> Patience {
    let wait = Duration::from_secs(60);
    Patience { age_min: Duration::from_secs(300), idle_min: wait, retry_wait: wait, retry_wait_max: wait }
}
