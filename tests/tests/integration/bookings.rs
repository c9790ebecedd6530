//! Booked rides over HTTP: the original's specs under their numbers, and what it promised beyond them.

use std::time::Duration;

use booking::Patience;
use futures_util::future::join_all;
use payments::Stripe;
use serde_json::{Value, json};
use tests::{Payments, Process, World, wait_until};

use crate::api::Api;

const USER: &str = "user@example.com";
const BAD_SOURCE: &str = "user-bad-source@example.com";
const KEY: &str = "3b1cb8c2-0f0d-4f4f-9d4e-5a4f8a1f0c11";
const JOURNEY: &str = "origin_lat=52.52&origin_lon=13.405&target_lat=48.8566&target_lon=2.3522";

/// A world with an api that books, and a processor.
struct Counter {
    world: World,
    payments: Payments,
    api: Api,
    http: reqwest::Client,
}

/// Names and values.
type Headers<'a> = &'a [(&'a str, &'a str)];

/// An answer: status, whether it is marked as replayed, body.
type Answer = (u16, bool, String);

impl Counter {
    async fn open() -> Self {
        let payments = Payments::start().await;
        let stripe = payments.stripe();
        Self::open_with(payments, stripe).await
    }

    async fn open_with(payments: Payments, stripe: Stripe) -> Self {
        let world = World::new().await;
        let api = Api::start_with(&world, stripe).await;
        Self { world, payments, api, http: reqwest::Client::new() }
    }

    async fn book(&self, key: &str) -> Answer {
        self.post(&[("authorization", USER), ("idempotency-key", key)], JOURNEY).await
    }

    async fn post(&self, headers: Headers<'_>, body: &str) -> Answer {
        let mut request = self.http.post(self.api.url("/rides"));
        request = request.header("content-type", "application/x-www-form-urlencoded").body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        let is_replayed = response.headers().get("idempotent-replayed").is_some_and(|value| value == "true");
        (response.status().as_u16(), is_replayed, response.text().await.unwrap())
    }

    /// The answer's status and its text for people.
    async fn error(&self, headers: Headers<'_>, body: &str) -> (u16, String) {
        let (status, _, body) = self.post(headers, body).await;
        (status, serde_json::from_str::<Value>(&body).unwrap()["error"].as_str().unwrap().to_owned())
    }

    async fn number(&self, query: &str) -> i64 {
        self.world.number(query).await
    }

    async fn execute(&self, statement: &str) {
        self.world.client().batch_execute(statement).await.unwrap();
    }

    async fn recovery_point(&self) -> (String, String) {
        let query = "SELECT recovery_point, status FROM tracked_operations";
        let row = self.world.client().query_one(query, &[]).await.unwrap();
        (row.get(0), row.get(1))
    }

    /// A request that stops before its charge.
    async fn stop_at_ride_created(&self, key: &str) {
        let raising = format!("{JOURNEY}&raise_error=true");
        let headers = [("authorization", USER), ("idempotency-key", key)];
        assert_eq!(self.post(&headers, &raising).await.0, 500);
    }

    /// A request whose last phase is undone.
    async fn stop_at_charge_created(&self, key: &str) {
        assert_eq!(self.book(key).await.0, 201);
        self.execute(
            "DELETE FROM staged_log_records WHERE object = 'receipt';
             DELETE FROM audit_records WHERE action = 'receipt.staged';
             UPDATE tracked_operations SET status = 'failed', recovery_point = 'charge_created', result = NULL",
        )
        .await;
    }

    /// One ride, one charge, one receipt, one of each record.
    async fn assert_booked_once(&self) {
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

    fn desk(&self, stripe: Stripe) -> booking::Desk {
        let config = self.world.database_url_of("completer").parse().unwrap();
        booking::Desk::new(connect::postgres::pool(&config, "completer", 2).unwrap(), stripe)
    }

    /// A round of the completer, which finds everything old enough.
    async fn complete(&self) -> (usize, usize) {
        let desk = self.desk(self.payments.stripe());
        let completion = booking::complete(&desk, &impatient(), 100).await.unwrap();
        (completion.replies.len(), completion.errors.len())
    }

    /// As if the request had been sent and left so long ago.
    async fn age(&self, by: &str) {
        self.execute(&format!(
            "UPDATE tracked_operations SET created_at = created_at - INTERVAL '{by}',
                 started_at = started_at - INTERVAL '{by}', timeout_at = timeout_at - INTERVAL '{by}',
                 expires_at = expires_at - INTERVAL '{by}'"
        ))
        .await;
    }
}

fn impatient() -> Patience {
    let wait = Duration::from_secs(60);
    Patience { age_min: Duration::from_secs(300), idle_min: wait, retry_wait: wait, retry_wait_max: wait }
}

#[tokio::test]
async fn ra_t01_a_new_key_books_charges_and_answers_201() {
    let counter = Counter::open().await;
    let (status, is_replayed, body) = counter.book(KEY).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, is_replayed), (201, false), "{body}");
    assert_eq!(body["message"], "Payment accepted. Your pilot is on their way!");
    // Berlin to Paris.
    let distance_mm = body["ride"]["distance_mm"].as_i64().unwrap();
    assert!((distance_mm - 877_463_000).abs() < 1_000_000, "{distance_mm}");
    counter.assert_booked_once().await;
    let charge = &counter.payments.charges().await[0];
    assert_eq!((charge.amount, charge.currency.as_str()), (2000, "usd"));
    assert_eq!(charge.customer.as_deref(), Some(payments::GOOD_CUSTOMER));
    assert_eq!(charge.description, Some(format!("Charge for ride {}", body["ride"]["id"])));
    let audit = "SELECT data::text, host(origin_ip) FROM audit_records WHERE action = 'ride.created'";
    let audit = counter.world.client().query_one(audit, &[]).await.unwrap();
    assert_eq!(audit.get::<_, &str>(1), "127.0.0.1");
    assert_eq!(serde_json::from_str::<Value>(audit.get(0)).unwrap()["origin_lat"], 52.52);
}

#[tokio::test]
async fn ra_t02_a_finished_key_is_answered_with_what_was_stored() {
    let counter = Counter::open().await;
    let (status, _, first) = counter.book(KEY).await;
    assert_eq!(status, 201);
    assert_eq!(counter.book(KEY).await, (201, true, first.clone()));
    // In quotes, as the draft has it, it is the same key.
    assert_eq!(counter.book(&format!("\"{KEY}\"")).await, (201, true, first));
    counter.assert_booked_once().await;
    counter
        .execute("UPDATE tracked_operations SET result = convert_to('{\"status\":201,\"body\":\"hello\"}', 'UTF8')")
        .await;
    assert_eq!(counter.book(KEY).await, (201, true, "hello".to_owned()));
}

#[tokio::test]
async fn ra_t03_to_t08_a_request_goes_on_from_wherever_it_stopped() {
    // T06, T03: at started, and nobody works on it.
    let counter = Counter::open().await;
    counter.stop_at_ride_created(KEY).await;
    counter.execute("DELETE FROM bookings; UPDATE tracked_operations SET recovery_point = 'started'").await;
    counter.execute("DELETE FROM staged_log_records; DELETE FROM audit_records; DELETE FROM rides").await;
    assert_eq!(counter.book(KEY).await.0, 201);
    counter.assert_booked_once().await;

    // T07, T04: at ride_created, and whoever worked on it has been silent for too long.
    let counter = Counter::open().await;
    counter.stop_at_ride_created(KEY).await;
    counter.execute("UPDATE tracked_operations SET status = 'running', timeout_at = now() - INTERVAL '1 s'").await;
    assert_eq!(counter.book(KEY).await.0, 201);
    counter.assert_booked_once().await;

    // T08: at charge_created.
    let counter = Counter::open().await;
    counter.stop_at_charge_created(KEY).await;
    let (status, is_replayed, _) = counter.book(KEY).await;
    assert_eq!((status, is_replayed), (201, false));
    counter.assert_booked_once().await;
}

#[tokio::test]
async fn ra_t05_a_declined_charge_is_final() {
    let counter = Counter::open().await;
    let headers = [("authorization", BAD_SOURCE), ("idempotency-key", KEY)];
    let (status, _, body) = counter.post(&headers, JOURNEY).await;
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &error["error"]), (402, &json!("Error from payment processor: Your card was declined.")));
    assert_eq!(counter.post(&headers, JOURNEY).await, (402, true, body));
    assert_eq!(counter.recovery_point().await, ("finished".to_owned(), "finished".to_owned()));
    assert_eq!(counter.payments.charges().await.len(), 0);
    let declined = "SELECT count(*) FROM staged_log_records WHERE object = 'charge' AND action = 'decline'";
    assert_eq!(counter.number(declined).await, 1);
    assert_eq!(counter.number("SELECT count(*) FROM staged_log_records WHERE object = 'receipt'").await, 0);
}

#[tokio::test]
async fn ra_t09_to_t13_what_is_missing_or_wrong_is_named_in_the_order_of_the_checks() {
    let counter = Counter::open().await;
    let missing = "Please specify credentials in the Authorization header.";
    let unknown = "Credentials in Authorization were invalid.";
    let no_key = "Please specify an idempotency key with the Idempotency-Key header.";
    let short_key = "Idempotency-Key must be at least 20 characters long.";
    let long = "k".repeat(256);
    let cases: &[(Headers<'_>, &str, u16, &str)] = &[
        (&[("authorization", ""), ("idempotency-key", KEY)], JOURNEY, 401, missing),
        (&[("idempotency-key", "xxx")], "", 401, missing),
        (&[], JOURNEY, 401, missing),
        (&[], "origin_lat=0", 401, missing),
        (&[("authorization", "bad-user@example.com")], "", 401, unknown),
        (&[("authorization", USER)], JOURNEY, 400, no_key),
        (&[("authorization", USER), ("idempotency-key", "")], "", 400, no_key),
        (&[("authorization", USER), ("idempotency-key", "xxx")], "", 400, short_key),
        (
            &[("authorization", USER), ("idempotency-key", &long)],
            "",
            400,
            "Idempotency-Key must be at most 255 characters long.",
        ),
    ];
    for (headers, body, status, text) in cases {
        assert_eq!(counter.error(headers, body).await, (*status, (*text).to_owned()), "{headers:?} {body}");
    }
    let headers = [("authorization", USER), ("idempotency-key", KEY)];
    for (body, text) in [
        ("", "Please specify parameter 'origin_lat'."),
        ("origin_lat=0", "Please specify parameter 'origin_lon'."),
        ("origin_lat=0&origin_lon=0", "Please specify parameter 'target_lat'."),
        ("origin_lat=0&origin_lon=0&target_lat=0", "Please specify parameter 'target_lon'."),
        ("origin_lat=x&origin_lon=y", "Parameter 'origin_lat' must be a floating-point number."),
        ("origin_lat=NaN", "Parameter 'origin_lat' must be a floating-point number."),
        ("origin_lat=91", "Parameter 'origin_lat' must be a valid latitude coordinate."),
        ("origin_lat=0&origin_lon=-180.5", "Parameter 'origin_lon' must be a valid longitude coordinate."),
        (
            "origin_lat=0&origin_lon=0&target_lat=0&target_lon=0&raise_error=perhaps",
            "Parameter 'raise_error' must be a boolean.",
        ),
    ] {
        assert_eq!(counter.error(&headers, body).await, (422, text.to_owned()), "{body}");
    }
    assert_eq!(counter.number("SELECT count(*) FROM tracked_operations").await, 0, "what was refused is not stored");
    // Nothing of a booked ride: a guest's.
    assert_eq!(counter.error(&[], "").await, (422, "Please specify parameter 'distance'.".to_owned()));
}

#[tokio::test]
async fn ra_t14_other_parameters_under_the_same_key_are_refused() {
    let counter = Counter::open().await;
    assert_eq!(counter.book(KEY).await.0, 201);
    let headers = [("authorization", USER), ("idempotency-key", KEY)];
    let text = "There was a mismatch between this request's parameters and the parameters of a previously stored \
                request with the same Idempotency-Key.";
    let other = "origin_lat=0&origin_lon=0&target_lat=0&target_lon=0";
    assert_eq!(counter.error(&headers, other).await, (409, text.to_owned()));
    // The same numbers, written otherwise, are the same request; the same key of another user is another request.
    let same = JOURNEY.replace("52.52", "%2B52.520");
    assert_eq!(counter.post(&headers, &same).await.0, 201);
    let other_user = [("authorization", BAD_SOURCE), ("idempotency-key", KEY)];
    assert_eq!(counter.post(&other_user, JOURNEY).await.0, 402);
}

#[tokio::test]
async fn ra_t15_while_a_request_is_answered_its_key_is_taken() {
    let counter = Counter::open().await;
    counter.payments.plan("slow", 1).await;
    let (first, second) = tokio::join!(counter.book(KEY), async {
        wait_until("the first has its ride", async || counter.number("SELECT count(*) FROM bookings").await == 1).await;
        counter.error(&[("authorization", USER), ("idempotency-key", KEY)], JOURNEY).await
    });
    assert_eq!(first.0, 201);
    assert_eq!(second, (409, "An API request with the same Idempotency-Key is already in progress.".to_owned()));
    counter.assert_booked_once().await;
}

/// Transactions that are in each other's way are tried again; here a trigger refuses the first of them.
#[tokio::test]
async fn ra_t16_a_serialization_failure_is_tried_again_and_then_gives_the_key_back() {
    let counter = Counter::open().await;
    counter
        .execute(
            "CREATE SEQUENCE refusals;
             CREATE TABLE refusal_count (n BIGINT NOT NULL); INSERT INTO refusal_count VALUES (2);
             GRANT SELECT ON refusal_count TO PUBLIC; GRANT USAGE ON SEQUENCE refusals TO PUBLIC;
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF nextval('refusals') <= (SELECT n FROM refusal_count) THEN
                     RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001';
                 END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER refuse BEFORE UPDATE OF stripe_charge_id ON bookings
                 FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await;
    assert_eq!(counter.book(KEY).await.0, 201, "twice refused, and tried again");
    counter.assert_booked_once().await;

    counter.execute("UPDATE refusal_count SET n = 1000000").await;
    let other = "b3b6cf9a-7d6b-4a53-9a56-0d2a6e3b6e52";
    let text = "Conflict detected with a concurrent request. Please retry with the same Idempotency-Key.";
    let headers = [("authorization", USER), ("idempotency-key", other)];
    assert_eq!(counter.error(&headers, JOURNEY).await, (409, text.to_owned()));
    let status = "SELECT count(*) FROM tracked_operations WHERE status = 'failed' AND recovery_point = 'ride_created'";
    assert_eq!(counter.number(status).await, 1, "given back");
    counter.execute("UPDATE refusal_count SET n = 0").await;
    assert_eq!(counter.book(other).await.0, 201);
    assert_eq!(counter.payments.charges().await.len(), 2, "a charge a key, however often it was asked for");
}

#[tokio::test]
async fn ra_t17_any_other_failure_gives_the_key_back() {
    let counter = Counter::open().await;
    let text = "Internal server error. Please retry the request periodically with the same Idempotency-Key until it \
                succeeds.";
    let headers = [("authorization", USER), ("idempotency-key", KEY)];
    let raising = format!("{JOURNEY}&raise_error=true");
    assert_eq!(counter.error(&headers, &raising).await, (500, text.to_owned()));
    assert_eq!(counter.recovery_point().await, ("ride_created".to_owned(), "failed".to_owned()));
    // raise_error is no part of what the key stands for.
    assert_eq!(counter.book(KEY).await.0, 201);
    counter.assert_booked_once().await;
}

#[tokio::test]
async fn ra_t18_the_completer_brings_an_old_request_to_its_end() {
    let counter = Counter::open().await;
    counter.stop_at_ride_created(KEY).await;
    counter.age("1 hour").await;
    assert_eq!(counter.complete().await, (1, 0));
    counter.assert_booked_once().await;
    let (status, is_replayed, _) = counter.book(KEY).await;
    assert_eq!((status, is_replayed), (201, true), "its client gets the answer in the end");
}

#[tokio::test]
async fn ra_t19_what_fails_again_is_counted_and_tried_later() {
    let counter = Counter::open().await;
    counter.stop_at_ride_created(KEY).await;
    counter.age("1 hour").await;
    counter.payments.plan("error-before", 1).await;
    assert_eq!(counter.complete().await, (0, 1));
    assert_eq!(counter.recovery_point().await, ("ride_created".to_owned(), "failed".to_owned()));
    counter.age("1 hour").await;
    assert_eq!(counter.complete().await, (0, 0), "not before its next attempt is due");
    counter.execute("UPDATE completions SET next_attempt_at = now()").await;
    assert_eq!(counter.complete().await, (1, 0));
    assert_eq!(counter.number("SELECT attempt_count::bigint FROM completions").await, 2);
    counter.assert_booked_once().await;
}

#[tokio::test]
async fn ra_t20_to_t23_the_completer_leaves_alone_what_is_young_just_tried_running_or_finished() {
    let counter = Counter::open().await;
    assert_eq!(counter.complete().await, (0, 0), "T22: nothing is there");
    counter.stop_at_ride_created(KEY).await;
    counter.execute("UPDATE tracked_operations SET started_at = now() - INTERVAL '4 min'").await;
    assert_eq!(counter.complete().await, (0, 0), "T20: young");
    counter.age("1 hour").await;
    counter.execute("UPDATE tracked_operations SET started_at = now()").await;
    assert_eq!(counter.complete().await, (0, 0), "T21: just tried");
    counter.age("1 hour").await;
    counter.execute("UPDATE tracked_operations SET status = 'running', timeout_at = now() + INTERVAL '1 min'").await;
    assert_eq!(counter.complete().await, (0, 0), "somebody works on it");
    counter.execute("UPDATE tracked_operations SET status = 'failed'").await;
    assert_eq!(counter.book(KEY).await.0, 201);
    counter.age("1 hour").await;
    assert_eq!(counter.complete().await, (0, 0), "T23: finished");
}

#[tokio::test]
async fn completers_share_the_work() {
    let counter = Counter::open().await;
    for number in 0..12 {
        counter.stop_at_ride_created(&format!("{KEY}-{number}")).await;
    }
    counter.age("1 hour").await;
    let rounds = join_all((0..4).map(|_| counter.complete())).await;
    assert_eq!(rounds.iter().map(|round| round.0).sum::<usize>(), 12, "{rounds:?}");
    assert!(rounds.iter().all(|round| round.1 == 0), "nobody meets a request of another: {rounds:?}");
    assert_eq!(counter.payments.charges().await.len(), 12);
}

/// The enqueuer's specs T24 and T25: here the jobs are records of the log.
#[tokio::test]
async fn ra_t24_and_t25_a_receipt_is_delivered_once() {
    let counter = Counter::open().await;
    let folder = tests::scratch_folder();
    let receipts = async || {
        let flags = ["receipts", "--drain", "--folder", folder.to_str().unwrap()];
        Process::start(&counter.world, "receipts", &flags).succeed().await;
        std::fs::read_dir(&folder).unwrap().count()
    };
    assert_eq!(receipts().await, 0);
    assert_eq!(counter.book(KEY).await.0, 201);
    counter.world.drain_streamer(&mut counter.world.streamer()).await;
    assert_eq!(receipts().await, 1);
    let ride_id = counter.number("SELECT ride_id FROM bookings").await;
    let text = std::fs::read_to_string(folder.join(format!("{ride_id}.eml"))).unwrap();
    assert!(text.contains("To: user@example.com") && text.contains("20.00 USD"), "{text}");
    // Everything again from the start, as after the loss of its checkpoint: noted once, delivered once.
    counter.execute("DELETE FROM checkpoints").await;
    std::fs::remove_file(folder.join(format!("{ride_id}.eml"))).unwrap();
    assert_eq!(receipts().await, 0, "it is marked as delivered");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn ra_t26_to_t28_old_requests_are_forgotten_and_unfinished_ones_listed() {
    let counter = Counter::open().await;
    let reap = async || Process::start(&counter.world, "reaper", &["--once"]).succeed().await;
    reap().await;
    assert_eq!(counter.book(KEY).await.0, 201);
    counter.stop_at_ride_created("unfinished-business-of-somebody").await;
    reap().await;
    assert_eq!(counter.number("SELECT count(*) FROM tracked_operations").await, 2, "T27: young");
    counter.age("73 hours").await;
    reap().await;
    assert_eq!(counter.number("SELECT count(*) FROM tracked_operations").await, 0, "T26: old");
    assert_eq!(counter.number("SELECT count(*) FROM rides").await, 2, "rides stay");
    let listed = "SELECT key, recovery_point, ride_id FROM reaped_requests";
    let listed = counter.world.client().query_one(listed, &[]).await.unwrap();
    assert_eq!(listed.get::<_, &str>(0), "unfinished-business-of-somebody");
    assert_eq!(listed.get::<_, &str>(1), "ride_created");
    assert_eq!(listed.get::<_, i64>(2), counter.number("SELECT max(id) FROM rides").await);
}

#[tokio::test]
async fn fifty_requests_with_one_key_are_one_ride_one_charge_one_receipt() {
    let counter = Counter::open().await;
    let answers = join_all((0..50).map(|_| counter.book(KEY))).await;
    let (_, _, body) = counter.book(KEY).await;
    for (status, _, answer) in &answers {
        assert!(*status == 409 || (*status, answer) == (201, &body), "{status} {answer}");
    }
    assert!(answers.iter().any(|answer| answer.0 == 201));
    counter.assert_booked_once().await;
}

#[tokio::test]
async fn an_outage_of_the_processor_is_not_final() {
    // Once it has charged, it says so to whoever asks again.
    for (fault, failure_count) in [("error-before", 2), ("error-after", 1), ("time-out", 1)] {
        let payments = Payments::start().await;
        let stripe = payments.impatient_stripe(Duration::from_secs(5));
        let counter = Counter::open_with(payments, stripe).await;
        counter.payments.plan(fault, failure_count).await;
        let headers = [("authorization", USER), ("idempotency-key", KEY)];
        for _ in 0..failure_count {
            let text = "Error from payment processor. Please contact support.";
            assert_eq!(counter.error(&headers, JOURNEY).await, (503, text.to_owned()), "{fault}");
            assert_eq!(counter.recovery_point().await, ("ride_created".to_owned(), "failed".to_owned()));
        }
        let (status, is_replayed, _) = counter.book(KEY).await;
        assert_eq!((status, is_replayed), (201, false), "{fault}");
        counter.assert_booked_once().await;
    }
}

#[tokio::test]
async fn a_processor_that_dies_after_it_has_charged_is_asked_again() {
    let port = tests::free_port();
    let (payments, mut process) = Payments::start_process(port);
    process.wait_for("payments started").await;
    let stripe = payments.stripe();
    let counter = Counter::open_with(payments, stripe).await;
    counter.payments.plan("die-after-charge", 1).await;
    assert_eq!(counter.book(KEY).await.0, 503);
    process.ended().await;
    assert_eq!(counter.book(KEY).await.0, 503, "it is down");
    assert_eq!(counter.recovery_point().await, ("ride_created".to_owned(), "failed".to_owned()));
    let mut process = counter.payments.start_again(port);
    process.wait_for("payments started").await;
    assert_eq!(counter.book(KEY).await.0, 201);
    counter.assert_booked_once().await;
}

/// The claim runs out while the processor is asked, and somebody else takes over.
#[tokio::test]
async fn who_is_overtaken_while_it_charges_changes_nothing() {
    let counter = Counter::open().await;
    counter.payments.plan("slow", 1).await;
    let (first, ()) = tokio::join!(counter.book(KEY), async {
        wait_until("the first has its ride", async || counter.number("SELECT count(*) FROM bookings").await == 1).await;
        counter.age("1 hour").await;
        let claim = "UPDATE tracked_operations SET token = token + 1, timeout_at = now() + INTERVAL '1 min'";
        counter.execute(claim).await;
    });
    assert_eq!(first.0, 409, "{}", first.2);
    assert_eq!(counter.recovery_point().await, ("ride_created".to_owned(), "running".to_owned()));
    assert_eq!(counter.number("SELECT count(*) FROM staged_log_records").await, 1);
    counter.age("1 hour").await;
    assert_eq!(counter.complete().await, (1, 0));
    counter.assert_booked_once().await;
}

#[tokio::test]
async fn all_consumers_count_booked_rides_like_others() {
    let counter = Counter::open().await;
    counter.world.write_rides(10).await;
    assert_eq!(counter.book(KEY).await.0, 201);
    counter.world.drain_streamer(&mut counter.world.streamer()).await;
    let progress = counter.world.drain_consumer(&mut counter.world.consumer("consumer0")).await;
    assert_eq!((progress.applied_count, progress.passed_count), (11, 2), "charge and receipt are records, too");
    counter.world.assert_converged(&["consumer0"]).await;
}

/// SIGKILL at every point, and in between: the request that comes again, or the completer, goes on, and nobody is charged
/// twice.
#[tokio::test]
async fn an_api_killed_at_any_point_of_a_booking_leaves_it_to_be_finished() {
    for point in ["started", "ride-created", "charged", "charge-created", "finished"] {
        let counter = Counter::open().await;
        let port = tests::free_port().to_string();
        let flags = [&["--api-port", &port, "--die-at", point], &counter.payments.flags()[..]].concat();
        let mut api = Process::start(&counter.world, "api", &flags);
        api.wait_for("api started").await;
        let request = counter.http.post(format!("http://127.0.0.1:{port}/rides")).header("authorization", USER);
        let request =
            request.header("idempotency-key", KEY).header("content-type", "application/x-www-form-urlencoded");
        request.body(JOURNEY).send().await.expect_err("nobody answers");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&api.ended().await), Some(9), "{point}");
        let headers = [("authorization", USER), ("idempotency-key", KEY)];
        if point != "finished" {
            let (status, _) = counter.error(&headers, JOURNEY).await;
            assert_eq!(status, 409, "{point}: until the claim has run out");
            counter.age("1 hour").await;
            assert_eq!(counter.complete().await, (1, 0), "{point}");
        }
        let (status, is_replayed, _) = counter.book(KEY).await;
        assert_eq!((status, is_replayed), (201, true), "{point}");
        counter.assert_booked_once().await;
    }
}

/// Clients that insist, that leave, and that send everything five times.
#[tokio::test]
async fn ra_t29_the_simulator_books_and_what_it_leaves_is_completed() {
    let counter = Counter::open().await;
    let port = counter.api.port().to_string();
    let flags =
        ["--api-port", &port, "--booked", "1", "--count", "60", "--rate", "max", "--concurrency", "8", "--seed", "7"];
    Process::start(&counter.world, "simulator", &flags).succeed().await;
    let unfinished = "SELECT count(*) FROM tracked_operations WHERE status <> 'finished'";
    assert_eq!(counter.number("SELECT count(*) FROM tracked_operations").await, 60);
    let left_count = counter.number(unfinished).await;
    assert!((5..30).contains(&left_count), "a quarter of them leave: {left_count}");
    counter.age("1 hour").await;
    assert_eq!(counter.complete().await, (usize::try_from(left_count).unwrap(), 0));
    assert_eq!(counter.number(unfinished).await, 0);
    assert_eq!(counter.number("SELECT count(*) FROM rides").await, 60);
    assert_eq!(counter.payments.charges().await.len(), 60);
    let receipts = "SELECT count(*) FROM staged_log_records WHERE object = 'receipt'";
    assert_eq!(counter.number(receipts).await, 60);
}

/// Seventeen digits: what is stored and read again must be the same number, and the same text.
#[tokio::test]
async fn coordinates_of_many_digits_are_completed_too() {
    let counter = Counter::open().await;
    let journey = "origin_lat=37.774900000000002&origin_lon=-122.41941550000001&target_lat=37.7&target_lon=-122.3";
    let headers = [("authorization", USER), ("idempotency-key", KEY)];
    assert_eq!(counter.post(&headers, &format!("{journey}&raise_error=true")).await.0, 500);
    counter.age("1 hour").await;
    assert_eq!(counter.complete().await, (1, 0));
    assert_eq!(counter.post(&headers, journey).await.0, 201);
    counter.assert_booked_once().await;
}

/// The processor forgets our key after a day: from then on nobody asks it again. What it has answered is brought to its end
/// however old it is.
#[tokio::test]
async fn after_a_day_only_what_is_charged_already_is_gone_on_with() {
    let counter = Counter::open().await;
    counter.stop_at_ride_created(KEY).await;
    counter.age("24 hours").await;
    assert_eq!(counter.complete().await, (0, 0));
    let (status, _, body) = counter.book(KEY).await;
    assert_eq!(status, 410, "{body}");
    assert_eq!(counter.payments.charges().await.len(), 0);

    let counter = Counter::open().await;
    counter.stop_at_charge_created(KEY).await;
    counter.age("100 hours").await;
    // Not even the reaper forgets it.
    Process::start(&counter.world, "reaper", &["--once"]).succeed().await;
    assert_eq!(counter.complete().await, (1, 0));
    counter.assert_booked_once().await;
}

/// The price of a ride and its payer are those of the booking, whatever has changed since.
#[tokio::test]
async fn a_booking_is_charged_to_whom_it_was_booked_for() {
    let counter = Counter::open().await;
    counter.payments.plan("error-after", 1).await;
    assert_eq!(counter.book(KEY).await.0, 503);
    counter.execute("UPDATE users SET stripe_customer_id = 'cus_other' WHERE id = 1").await;
    assert_eq!(counter.book(KEY).await.0, 201);
    counter.assert_booked_once().await;
}

/// A receipt that cannot be delivered keeps no other from it.
#[tokio::test]
async fn a_user_without_a_sound_address_holds_up_nobody() {
    let counter = Counter::open().await;
    counter.execute("UPDATE users SET email = 'no address' WHERE id = 1").await;
    counter.execute("INSERT INTO users (id, email, stripe_customer_id) VALUES (3, 'third@example.com', 'cus_3')").await;
    let receipts = "INSERT INTO receipts (ride_id, record_offset, data)
        SELECT ride, ride, format('{\"ride_id\":%s,\"user_id\":%s,\"amount\":2000,\"currency\":\"usd\"}', ride, person)::json
        FROM (VALUES (1, 1), (2, 3)) AS of (ride, person)";
    counter.execute(receipts).await;
    let folder = tests::scratch_folder();
    let flags = ["receipts", "--drain", "--folder", folder.to_str().unwrap()];
    let output = Process::start(&counter.world, "receipts", &flags).fail(1).await;
    assert!(output.contains("the receipt of ride 1"), "{output}");
    assert!(folder.join("2.eml").exists(), "{output}");
    std::fs::remove_dir_all(&folder).unwrap();
}
