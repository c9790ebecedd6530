//! Booked rides over HTTP: the requests and their responses. The original's specs keep their numbers.

use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::wait_until;

use crate::booking_fixture::{BAD_SOURCE, BookingFixture, Headers, JOURNEY, KEY, USER};

#[tokio::test]
async fn ra_t01_a_new_key_books_charges_and_answers_201() {
    let fixture = BookingFixture::open().await;
    let (status, is_replayed, body) = fixture.book(KEY).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, is_replayed), (201, false), "{body}");
    assert_eq!(body["message"], "Payment accepted. Your pilot is on their way!");
    // Berlin to Paris.
    let distance_mm = body["ride"]["distance_mm"].as_i64().unwrap();
    assert!((distance_mm - 877_463_000).abs() < 1_000_000, "{distance_mm}");
    fixture.assert_booked_once().await;
    let charge = &fixture.payments.charges().await[0];
    assert_eq!((charge.amount, charge.currency.as_deref()), (Some(2000), Some("usd")));
    assert_eq!(charge.customer.as_deref(), Some(payments::GOOD_CUSTOMER));
    assert_eq!(charge.description, Some(format!("Charge for ride {}", body["ride"]["id"])));
    let audit = "SELECT data::text, host(origin_ip) FROM audit_records WHERE action = 'ride.created'";
    let audit = fixture.world.client().query_one(audit, &[]).await.unwrap();
    assert_eq!(audit.get::<_, &str>(1), "127.0.0.1");
    assert_eq!(serde_json::from_str::<Value>(audit.get(0)).unwrap()["origin_lat"], 52.52);
}

#[tokio::test]
async fn ra_t02_a_finished_key_is_answered_with_what_was_stored() {
    let fixture = BookingFixture::open().await;
    let (status, _, first) = fixture.book(KEY).await;
    assert_eq!(status, 201);
    assert_eq!(fixture.book(KEY).await, (201, true, first.clone()));
    // The key in quotes, as the draft writes it, is the same key.
    assert_eq!(fixture.book(&format!("\"{KEY}\"")).await, (201, true, first));
    fixture.assert_booked_once().await;
    fixture
        .execute("UPDATE tracked_operations SET result = convert_to('{\"status\":201,\"body\":\"hello\"}', 'UTF8')")
        .await;
    assert_eq!(fixture.book(KEY).await, (201, true, "hello".to_owned()));
}

#[tokio::test]
async fn ra_t03_to_t08_a_request_goes_on_from_wherever_it_stopped() {
    // T06, T03: the request has started, and no process works on it.
    let fixture = BookingFixture::open().await;
    fixture.stop_at_ride_created(KEY).await;
    fixture.execute("DELETE FROM bookings; UPDATE tracked_operations SET recovery_point = 'started'").await;
    fixture.execute("DELETE FROM staged_log_records; DELETE FROM audit_records; DELETE FROM rides").await;
    assert_eq!(fixture.book(KEY).await.0, 201);
    fixture.assert_booked_once().await;

    // T07, T04: the ride is created, and the claim of the process that worked on the request has expired.
    let fixture = BookingFixture::open().await;
    fixture.stop_at_ride_created(KEY).await;
    fixture.execute("UPDATE tracked_operations SET status = 'running', timeout_at = now() - INTERVAL '1 s'").await;
    assert_eq!(fixture.book(KEY).await.0, 201);
    fixture.assert_booked_once().await;

    // T08: the charge is created.
    let fixture = BookingFixture::open().await;
    fixture.stop_at_charge_created(KEY).await;
    let (status, is_replayed, _) = fixture.book(KEY).await;
    assert_eq!((status, is_replayed), (201, false));
    fixture.assert_booked_once().await;
}

#[tokio::test]
async fn ra_t05_a_declined_charge_is_final() {
    let fixture = BookingFixture::open().await;
    let headers = [("authorization", BAD_SOURCE), ("idempotency-key", KEY)];
    let (status, _, body) = fixture.post(&headers, JOURNEY).await;
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &error["error"]), (402, &json!("Error from payment processor: Your card was declined.")));
    assert_eq!(fixture.post(&headers, JOURNEY).await, (402, true, body));
    assert_eq!(fixture.recovery_point().await, ("finished".to_owned(), "finished".to_owned()));
    assert_eq!(fixture.payments.charges().await.len(), 0);
    let declined = "SELECT count(*) FROM staged_log_records WHERE object = 'charge' AND action = 'decline'";
    assert_eq!(fixture.number(declined).await, 1);
    assert_eq!(fixture.number("SELECT count(*) FROM staged_log_records WHERE object = 'receipt'").await, 0);
}

#[tokio::test]
async fn ra_t09_to_t13_what_is_missing_or_wrong_is_named_in_the_order_of_the_checks() {
    let fixture = BookingFixture::open().await;
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
        (&[("authorization", "bad-user@example.com")], JOURNEY, 401, unknown),
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
        assert_eq!(fixture.error(headers, body).await, (*status, (*text).to_owned()), "{headers:?} {body}");
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
        assert_eq!(fixture.error(&headers, body).await, (422, text.to_owned()), "{body}");
    }
    assert_eq!(fixture.number("SELECT count(*) FROM tracked_operations").await, 0, "a refused request is not stored");
    // A request without any part of a booking is a guest's.
    assert_eq!(fixture.error(&[], "").await, (422, "Please specify parameter 'distance'.".to_owned()));
}

#[tokio::test]
async fn ra_t14_other_parameters_under_the_same_key_are_refused() {
    let fixture = BookingFixture::open().await;
    assert_eq!(fixture.book(KEY).await.0, 201);
    let headers = [("authorization", USER), ("idempotency-key", KEY)];
    let text = "There was a mismatch between this request's parameters and the parameters of a previously stored \
                request with the same Idempotency-Key.";
    let other = "origin_lat=0&origin_lon=0&target_lat=0&target_lon=0";
    assert_eq!(fixture.error(&headers, other).await, (409, text.to_owned()));
    // The same numbers in another notation are the same request. The same key of another user is another request.
    let same = JOURNEY.replace("52.52", "%2B52.520");
    assert_eq!(fixture.post(&headers, &same).await.0, 201);
    let other_user = [("authorization", BAD_SOURCE), ("idempotency-key", KEY)];
    assert_eq!(fixture.post(&other_user, JOURNEY).await.0, 402);
}

#[tokio::test]
async fn ra_t15_while_a_request_is_answered_its_key_is_taken() {
    let fixture = BookingFixture::open().await;
    fixture.payments.plan("slow", 1).await;
    let (first, second) = tokio::join!(fixture.book(KEY), async {
        wait_until("the first has its ride", async || fixture.number("SELECT count(*) FROM bookings").await == 1).await;
        fixture.error(&[("authorization", USER), ("idempotency-key", KEY)], JOURNEY).await
    });
    assert_eq!(first.0, 201);
    assert_eq!(second, (409, "An API request with the same Idempotency-Key is already in progress.".to_owned()));
    fixture.assert_booked_once().await;
}

/// A transaction that fails to serialize is tried again. Here a trigger refuses the first attempts.
#[tokio::test]
async fn ra_t16_a_serialization_failure_is_tried_again_and_then_gives_the_key_back() {
    let fixture = BookingFixture::open().await;
    fixture
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
    assert_eq!(fixture.book(KEY).await.0, 201, "twice refused, and tried again");
    fixture.assert_booked_once().await;

    fixture.execute("UPDATE refusal_count SET n = 1000000").await;
    let other = "b3b6cf9a-7d6b-4a53-9a56-0d2a6e3b6e52";
    let text = "Conflict detected with a concurrent request. Please retry with the same Idempotency-Key.";
    let headers = [("authorization", USER), ("idempotency-key", other)];
    assert_eq!(fixture.error(&headers, JOURNEY).await, (409, text.to_owned()));
    let status = "SELECT count(*) FROM tracked_operations WHERE status = 'failed' AND recovery_point = 'ride_created'";
    assert_eq!(fixture.number(status).await, 1, "given back");
    fixture.execute("UPDATE refusal_count SET n = 0").await;
    assert_eq!(fixture.book(other).await.0, 201);
    assert_eq!(fixture.payments.charges().await.len(), 2, "one charge per key, however often it was requested");
}

#[tokio::test]
async fn ra_t17_any_other_failure_gives_the_key_back() {
    let fixture = BookingFixture::open().await;
    let text = "Internal server error. Please retry the request periodically with the same Idempotency-Key until it \
                succeeds.";
    let headers = [("authorization", USER), ("idempotency-key", KEY)];
    let raising = format!("{JOURNEY}&raise_error=true");
    assert_eq!(fixture.error(&headers, &raising).await, (500, text.to_owned()));
    assert_eq!(fixture.recovery_point().await, ("ride_created".to_owned(), "failed".to_owned()));
    // raise_error is not part of the request's fingerprint.
    assert_eq!(fixture.book(KEY).await.0, 201);
    fixture.assert_booked_once().await;
}

#[tokio::test]
async fn fifty_requests_with_one_key_are_one_ride_one_charge_one_receipt() {
    let fixture = BookingFixture::open().await;
    let answers = join_all((0..50).map(|_| fixture.book(KEY))).await;
    let (_, _, body) = fixture.book(KEY).await;
    for (status, _, answer) in &answers {
        assert!(*status == 409 || (*status, answer) == (201, &body), "{status} {answer}");
    }
    assert!(answers.iter().any(|answer| answer.0 == 201));
    fixture.assert_booked_once().await;
}
