//! Every answer of the payment processor, and its silence: what the client is told, and what becomes of the booking.

use tests::{Watched, wait_until};

use crate::booking_fixture::{BookingFixture, JOURNEY, KEY, USER};

const HEADERS: [(&str, &str); 2] = [("authorization", USER), ("idempotency-key", KEY)];

#[tokio::test]
async fn a_pending_charge_is_no_payment_until_it_is_paid() {
    let fixture = BookingFixture::open().await;
    fixture.payments.plan("pending", 1).await;
    let (status, text) = fixture.error(&HEADERS, JOURNEY).await;
    assert_eq!((status, text.contains("pending")), (503, true), "{text}");
    assert_eq!(fixture.recovery_point().await, ("ride_created".to_owned(), "failed".to_owned()));
    assert_eq!(fixture.number("SELECT count(*) FROM bookings WHERE stripe_charge_id IS NOT NULL").await, 0);
    assert_eq!(fixture.number("SELECT count(*) FROM staged_log_records WHERE object <> 'ride'").await, 0, "no receipt");
    wait_until("it is paid", async || !fixture.payments.charges().await.is_empty()).await;
    fixture.age("10 minutes").await;
    assert_eq!(fixture.complete().await, (1, 0), "the completer asks again");
    assert_eq!(fixture.book(KEY).await.0, 201);
    fixture.assert_booked_once().await;
}

#[tokio::test]
async fn a_pending_charge_that_fails_is_a_decline() {
    let fixture = BookingFixture::open().await;
    fixture.payments.plan("pending-then-declined", 1).await;
    assert_eq!(fixture.book(KEY).await.0, 503);
    wait_until("it is declined", async || fixture.book(KEY).await.0 == 402).await;
    assert_eq!(fixture.number("SELECT count(*) FROM staged_log_records WHERE object = 'receipt'").await, 0);
    assert_eq!(fixture.payments.charges().await.len(), 0);
}

#[tokio::test]
async fn a_refusal_is_told_as_one_and_waits_for_an_operator() {
    let fixture = BookingFixture::open().await;
    let refusals = [
        ("UPDATE users SET stripe_customer_id = 'cus_nobody' WHERE id = 1", None),
        ("UPDATE users SET stripe_customer_id = 'cus_good' WHERE id = 1", Some("refused")),
    ];
    for (number, (change, fault)) in refusals.into_iter().enumerate() {
        fixture.execute(change).await;
        if let Some(fault) = fault {
            fixture.payments.plan(fault, 1).await;
        }
        let key = format!("{KEY}-{number}");
        let request = fixture.http.post(fixture.api.url("/rides")).header("authorization", USER).body(JOURNEY);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let response = request.header("idempotency-key", &key).send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.headers().get("retry-after")), (502, None), "{change}");
        assert!(response.text().await.unwrap().contains("processor_refused"));
    }
    let named = "SELECT count(*) FROM tracked_operations WHERE status = 'failed'
                 AND error_message LIKE 'the payment processor: refused: %(request req\\_%)'";
    assert_eq!(fixture.number(named).await, 2, "the processor's name of the request is kept");
    // The operator has removed the cause.
    fixture.age("10 minutes").await;
    assert_eq!(fixture.complete().await, (1, 1), "the booking of the customer who is unknown waits");
    fixture.execute("UPDATE bookings SET stripe_customer_id = 'cus_good', charge_form = replace(charge_form::text, 'cus_nobody', 'cus_good')::json").await;
    fixture.execute("UPDATE completions SET next_attempt_at = now()").await;
    fixture.age("10 minutes").await;
    assert_eq!(fixture.complete().await, (1, 0));
    assert_eq!(fixture.payments.charges().await.len(), 2);
}

/// The advice not to retry after a 500: every retry would get the same answer, so the charge is looked for at once.
#[tokio::test]
async fn an_error_for_good_is_no_reason_to_retry_every_second() {
    let fixture = BookingFixture::open().await;
    fixture.payments.plan("error-for-good", 1).await;
    assert_eq!(fixture.book(KEY).await.0, 502);
    fixture.payments.plan("rate-limited", 1).await;
    assert_eq!(fixture.book(KEY).await.0, 503);
    assert_eq!(fixture.book(KEY).await.0, 201);
    fixture.assert_booked_once().await;
}

#[tokio::test]
async fn outcomes_and_latency_are_measured() {
    let fixture = BookingFixture::open().await;
    let port = tests::free_port().to_string();
    let flags = [&["--api-port", &port], &fixture.payments.flags()[..]].concat();
    let api = Watched::start(&fixture.world, "api", &flags).await;
    let completer = Watched::start(&fixture.world, "completer", &fixture.payments.flags()).await;
    fixture.payments.plan("error-before", 1).await;
    for status in [503, 201] {
        let request = fixture.http.post(format!("http://127.0.0.1:{port}/rides")).body(JOURNEY);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let request = request.header("authorization", USER).header("idempotency-key", KEY);
        assert_eq!(request.send().await.unwrap().status().as_u16(), status);
    }
    for (outcome, count) in [("paid", 1.0), ("unavailable", 1.0), ("refused", 0.0), ("pending", 0.0)] {
        let name = format!("rocket_rides_processor_requests_total{{outcome=\"{outcome}\"}}");
        assert_eq!(api.metric(&name).await, count, "{outcome}");
    }
    assert_eq!(api.metric("rocket_rides_processor_seconds_count").await, 2.0);
    fixture.stop_at_ride_created("unfinished-business-of-somebody").await;
    fixture.age("24 hours").await;
    fixture.execute("UPDATE tracked_operations SET started_at = now()").await;
    wait_until("it is doubtful", async || completer.metric("rocket_rides_bookings_doubtful").await == 1.0).await;
    assert!(completer.metric("rocket_rides_booking_unfinished_seconds").await > 86_000.0);
    for watched in [api, completer] {
        watched.process.stop().await;
    }
}
