//! Every answer of the payment processor, and its silence: what the client is told, and what becomes of the booking.

use std::time::Duration;

use futures_util::future::join_all;
use tests::{Process, Watched, wait_until};
use tokio::net::TcpListener;

use crate::booking_fixture::{BookingFixture, JOURNEY, KEY, USER, impatient};

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
    let mut doctor = Process::start(&fixture.world, "doctor", &[]);
    doctor.ended().await;
    let output = doctor.read_to_end().await;
    assert!(output.contains("bookings.unfinished: 2 cannot be charged: ride "), "{output}");
    assert!(output.contains("No such customer: 'cus_nobody'"), "{output}");
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
    assert_eq!(api.metric("rocket_rides_processor_breaker_open").await, 0.0);
    fixture.stop_at_ride_created("unfinished-business-of-somebody").await;
    fixture.age("24 hours").await;
    fixture.execute("UPDATE tracked_operations SET started_at = now()").await;
    wait_until("it is doubtful", async || completer.metric("rocket_rides_bookings_doubtful").await == 1.0).await;
    assert!(completer.metric("rocket_rides_booking_unfinished_seconds").await > 86_000.0);
    for watched in [api, completer] {
        watched.process.stop().await;
    }
}

/// A processor that takes connections and never answers.
async fn silent_processor() -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let taking = tokio::spawn(async move {
        let mut sockets = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            sockets.push(socket);
        }
    });
    (base, taking)
}

/// Without the limit each booking holds a socket for 10 s; without the breaker each that gets a place does.
#[tokio::test]
async fn bookings_that_hang_take_a_bounded_number_of_places_and_guests_ride_on() {
    let (base, taking) = silent_processor().await;
    let fixture = BookingFixture::open().await;
    let port = tests::free_port().to_string();
    let flags = ["--api-port", &port, "--stripe-api-base", &base, "--stripe-api-key", "sk_test_any"];
    let api = Watched::start(&fixture.world, "api", &flags).await;
    let url = format!("http://127.0.0.1:{port}/rides");
    let book = async |number: usize| {
        let request = fixture.http.post(&url).header("authorization", USER).body(JOURNEY);
        let request = request.header("idempotency-key", format!("{KEY}-{number}"));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let response = request.send().await.unwrap();
        let retry_after = response.headers().get("retry-after").is_some();
        (response.status().as_u16(), retry_after, response.text().await.unwrap())
    };
    let ride = async || {
        let request = fixture.http.post(&url).body("distance=1");
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        request.send().await.unwrap().status().as_u16()
    };
    let pid = api.process.pid();
    let sockets = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = sockets();
    let (answers, ()) = tokio::join!(join_all((0..booking::PLACE_COUNT + 200).map(book)), async {
        wait_until("every place is taken", async || {
            fixture.number("SELECT count(*) FROM bookings").await >= booking::PLACE_COUNT as i64
        })
        .await;
        assert_eq!(ride().await, 201, "a guest's ride goes on");
    });
    assert!(answers.iter().all(|(status, retry_after, _)| (*status, *retry_after) == (503, true)));
    let refused_count = answers.iter().filter(|answer| answer.2.contains("overloaded")).count();
    assert!(refused_count >= 100, "{refused_count} were not begun");
    // Every place is free again, and the breaker is open: only a probe waits for the processor.
    assert_eq!(api.metric("rocket_rides_processor_breaker_open").await, 1.0);
    let began = std::time::Instant::now();
    for number in 0..20 {
        assert_eq!(book(1000 + number).await.0, 503);
    }
    assert!(began.elapsed() < Duration::from_secs(60), "20 bookings took {:?}", began.elapsed());
    assert_eq!((ride().await, api.metric("rocket_rides_ready").await), (201, 1.0));
    assert!(sockets() < before + 2 * booking::PLACE_COUNT + 300);
    api.process.stop().await;
    taking.abort();
}

/// While the processor is away, the completer takes no booking: each attempt would put off the next.
#[tokio::test]
async fn the_completer_waits_for_the_processor_and_then_finishes_every_booking() {
    let fixture = BookingFixture::open().await;
    for number in 0..12 {
        fixture.stop_at_ride_created(&format!("{KEY}-{number:02}")).await;
    }
    fixture.age("10 minutes").await;
    let desk = fixture.desk(fixture.payments.impatient_stripe(Duration::from_millis(300)));
    let complete = async || {
        let completion = booking::complete(&desk, &impatient(), 5).await.unwrap();
        (completion.replies.len(), completion.errors.len())
    };
    fixture.payments.plan("time-out", 1000).await;
    assert_eq!(complete().await, (0, 5));
    assert_eq!(complete().await, (0, 0), "the breaker is open");
    assert_eq!(fixture.number("SELECT count(*) FROM completions").await, 5);
    fixture.payments.plan("time-out", 0).await;
    let finished = "SELECT count(*) FROM tracked_operations WHERE status = 'finished'";
    wait_until("those that were not tried are finished", async || {
        complete().await;
        fixture.number(finished).await == 7
    })
    .await;
    assert_eq!(fixture.number("SELECT max(attempt_count)::bigint FROM completions").await, 1);
}
