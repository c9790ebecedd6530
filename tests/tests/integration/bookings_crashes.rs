//! Interrupted bookings: the payment processor or the api dies, or another process takes the request over.

use std::time::Duration;

use tests::{Payments, Process, wait_until};

use crate::booking_fixture::{BookingFixture, JOURNEY, KEY, USER};

#[tokio::test]
async fn an_outage_of_the_processor_is_not_final() {
    // After `error-after` and `time-out` the processor has charged, and a retry returns that charge.
    for (fault, failure_count) in [("error-before", 2), ("error-after", 1), ("time-out", 1)] {
        let payments = Payments::start().await;
        let stripe = payments.impatient_stripe(Duration::from_secs(2));
        let fixture = BookingFixture::open_with(payments, stripe).await;
        fixture.payments.plan(fault, failure_count).await;
        let headers = [("authorization", USER), ("idempotency-key", KEY)];
        for _ in 0..failure_count {
            let text = "Error from payment processor. Please contact support.";
            assert_eq!(fixture.error(&headers, JOURNEY).await, (503, text.to_owned()), "{fault}");
            assert_eq!(fixture.recovery_point().await, ("ride_created".to_owned(), "failed".to_owned()));
        }
        let (status, is_replayed, _) = fixture.book(KEY).await;
        assert_eq!((status, is_replayed), (201, false), "{fault}");
        fixture.assert_booked_once().await;
    }
}

#[tokio::test]
async fn a_processor_that_dies_after_it_has_charged_is_asked_again() {
    let port = tests::free_port();
    let (payments, mut process) = Payments::start_process(port);
    process.wait_for("payments started").await;
    let stripe = payments.stripe();
    let fixture = BookingFixture::open_with(payments, stripe).await;
    fixture.payments.plan("die-after-charge", 1).await;
    assert_eq!(fixture.book(KEY).await.0, 503);
    process.ended().await;
    assert_eq!(fixture.book(KEY).await.0, 503, "the processor is down");
    assert_eq!(fixture.recovery_point().await, ("ride_created".to_owned(), "failed".to_owned()));
    let mut process = fixture.payments.start_again(port);
    process.wait_for("payments started").await;
    assert_eq!(fixture.book(KEY).await.0, 201);
    fixture.assert_booked_once().await;
}

/// The claim expires while the api waits for the processor, and another process takes the request over.
#[tokio::test]
async fn who_is_overtaken_while_it_charges_changes_nothing() {
    let fixture = BookingFixture::open().await;
    fixture.payments.plan("slow", 1).await;
    let (first, ()) = tokio::join!(fixture.book(KEY), async {
        wait_until("the first has its ride", async || fixture.number("SELECT count(*) FROM bookings").await == 1).await;
        fixture.age("1 hour").await;
        let claim = "UPDATE tracked_operations SET token = token + 1, timeout_at = now() + INTERVAL '1 min'";
        fixture.execute(claim).await;
    });
    assert_eq!(first.0, 409, "{}", first.2);
    assert_eq!(fixture.recovery_point().await, ("ride_created".to_owned(), "running".to_owned()));
    assert_eq!(fixture.number("SELECT count(*) FROM staged_log_records").await, 1);
    fixture.age("1 hour").await;
    assert_eq!(fixture.complete().await, (1, 0));
    fixture.assert_booked_once().await;
}

/// SIGKILL at every point of a booking. The client's retry or the completer finishes the request, and the user is charged
/// once.
#[tokio::test]
async fn an_api_killed_at_any_point_of_a_booking_leaves_it_to_be_finished() {
    for point in ["started", "ride-created", "charged", "charge-created", "finished"] {
        let fixture = BookingFixture::open().await;
        let port = tests::free_port().to_string();
        let flags = [&["--api-port", &port, "--die-at", point], &fixture.payments.flags()[..]].concat();
        let mut api = Process::start(&fixture.world, "api", &flags);
        api.wait_for("api started").await;
        let request = fixture.http.post(format!("http://127.0.0.1:{port}/rides")).header("authorization", USER);
        let request =
            request.header("idempotency-key", KEY).header("content-type", "application/x-www-form-urlencoded");
        request.body(JOURNEY).send().await.expect_err("the api dies before it responds");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&api.ended().await), Some(9), "{point}");
        let headers = [("authorization", USER), ("idempotency-key", KEY)];
        if point != "finished" {
            let (status, _) = fixture.error(&headers, JOURNEY).await;
            assert_eq!(status, 409, "{point}: until the claim has expired");
            fixture.age("1 hour").await;
            assert_eq!(fixture.complete().await, (1, 0), "{point}");
        }
        let (status, is_replayed, _) = fixture.book(KEY).await;
        assert_eq!((status, is_replayed), (201, true), "{point}");
        fixture.assert_booked_once().await;
    }
}

/// The price of a ride and its payer are those of the booking, even if the user has changed since.
#[tokio::test]
async fn a_booking_is_charged_to_whom_it_was_booked_for() {
    let fixture = BookingFixture::open().await;
    fixture.payments.plan("error-after", 1).await;
    assert_eq!(fixture.book(KEY).await.0, 503);
    fixture.execute("UPDATE users SET stripe_customer_id = 'cus_other' WHERE id = 1").await;
    assert_eq!(fixture.book(KEY).await.0, 201);
    fixture.assert_booked_once().await;
}
