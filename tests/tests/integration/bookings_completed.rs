//! Bookings after their response: completer, receipts, reaper and consumers. The original's specs keep their numbers.

use futures_util::future::join_all;
use tests::Process;

use crate::booking_fixture::{BookingFixture, KEY, USER};

#[tokio::test]
async fn ra_t18_the_completer_brings_an_old_request_to_its_end() {
    let fixture = BookingFixture::open().await;
    fixture.stop_at_ride_created(KEY).await;
    fixture.age("1 hour").await;
    assert_eq!(fixture.complete().await, (1, 0));
    fixture.assert_booked_once().await;
    let (status, is_replayed, _) = fixture.book(KEY).await;
    assert_eq!((status, is_replayed), (201, true), "a retry of the client gets the response");
}

#[tokio::test]
async fn ra_t19_what_fails_again_is_counted_and_tried_later() {
    let fixture = BookingFixture::open().await;
    fixture.stop_at_ride_created(KEY).await;
    fixture.age("1 hour").await;
    fixture.payments.plan("error-before", 1).await;
    assert_eq!(fixture.complete().await, (0, 1));
    assert_eq!(fixture.recovery_point().await, ("ride_created".to_owned(), "failed".to_owned()));
    fixture.age("1 hour").await;
    assert_eq!(fixture.complete().await, (0, 0), "not before its next attempt is due");
    fixture.execute("UPDATE completions SET next_attempt_at = now()").await;
    assert_eq!(fixture.complete().await, (1, 0));
    assert_eq!(fixture.number("SELECT attempt_count::bigint FROM completions").await, 2);
    fixture.assert_booked_once().await;
}

#[tokio::test]
async fn ra_t20_to_t23_the_completer_leaves_alone_what_is_young_just_tried_running_or_finished() {
    let fixture = BookingFixture::open().await;
    assert_eq!(fixture.complete().await, (0, 0), "T22: there is no request");
    fixture.stop_at_ride_created(KEY).await;
    fixture.execute("UPDATE tracked_operations SET started_at = now() - INTERVAL '4 min'").await;
    assert_eq!(fixture.complete().await, (0, 0), "T20: young");
    fixture.age("1 hour").await;
    fixture.execute("UPDATE tracked_operations SET started_at = now()").await;
    assert_eq!(fixture.complete().await, (0, 0), "T21: just tried");
    fixture.age("1 hour").await;
    fixture.execute("UPDATE tracked_operations SET status = 'running', timeout_at = now() + INTERVAL '1 min'").await;
    assert_eq!(fixture.complete().await, (0, 0), "another process works on it");
    fixture.execute("UPDATE tracked_operations SET status = 'failed'").await;
    assert_eq!(fixture.book(KEY).await.0, 201);
    fixture.age("1 hour").await;
    assert_eq!(fixture.complete().await, (0, 0), "T23: finished");
}

#[tokio::test]
async fn completers_share_the_work() {
    let fixture = BookingFixture::open().await;
    for number in 0..12 {
        fixture.stop_at_ride_created(&format!("{KEY}-{number}")).await;
    }
    fixture.age("1 hour").await;
    let rounds = join_all((0..4).map(|_| fixture.complete())).await;
    assert_eq!(rounds.iter().map(|round| round.0).sum::<usize>(), 12, "{rounds:?}");
    assert!(
        rounds.iter().all(|round| round.1 == 0),
        "no completer fails on a request of another completer: {rounds:?}"
    );
    assert_eq!(fixture.payments.charges().await.len(), 12);
}

/// A request that is already charged is finished, however old it is.
#[tokio::test]
async fn what_is_charged_already_is_finished_at_any_age() {
    let fixture = BookingFixture::open().await;
    fixture.stop_at_charge_created(KEY).await;
    fixture.age("100 hours").await;
    // The reaper keeps it, too.
    Process::start(&fixture.world, "reaper", &["--once"]).succeed().await;
    assert_eq!(fixture.complete().await, (1, 0));
    fixture.assert_booked_once().await;
}

/// Coordinates of seventeen digits are the same numbers, in the same notation, after they were stored and read again.
#[tokio::test]
async fn coordinates_of_many_digits_are_completed_too() {
    let fixture = BookingFixture::open().await;
    let journey = "origin_lat=37.774900000000002&origin_lon=-122.41941550000001&target_lat=37.7&target_lon=-122.3";
    let headers = [("authorization", USER), ("idempotency-key", KEY)];
    assert_eq!(fixture.post(&headers, &format!("{journey}&raise_error=true")).await.0, 500);
    fixture.age("1 hour").await;
    assert_eq!(fixture.complete().await, (1, 0));
    assert_eq!(fixture.post(&headers, journey).await.0, 201);
    fixture.assert_booked_once().await;
}

/// The enqueuer's specs T24 and T25. Here the jobs are records of the log.
#[tokio::test]
async fn ra_t24_and_t25_a_receipt_is_delivered_once() {
    let fixture = BookingFixture::open().await;
    let folder = tests::scratch_folder();
    let receipts = async || {
        let flags = ["receipts", "--drain", "--folder", folder.to_str().unwrap()];
        Process::start(&fixture.world, "receipts", &flags).succeed().await;
        std::fs::read_dir(&folder).unwrap().count()
    };
    assert_eq!(receipts().await, 0);
    assert_eq!(fixture.book(KEY).await.0, 201);
    fixture.world.drain_streamer(&mut fixture.world.streamer()).await;
    assert_eq!(receipts().await, 1);
    let ride_id = fixture.number("SELECT ride_id FROM bookings").await;
    let text = std::fs::read_to_string(folder.join(format!("{ride_id}.eml"))).unwrap();
    assert!(text.contains("To: user@example.com") && text.contains("20.00 USD"), "{text}");
    // After the loss of its checkpoint the process reads the log from the start: the receipt is noted once, delivered once.
    fixture.execute("DELETE FROM checkpoints").await;
    fixture.execute("DELETE FROM unregistered_consumers").await;
    std::fs::remove_file(folder.join(format!("{ride_id}.eml"))).unwrap();
    assert_eq!(receipts().await, 0, "the receipt is marked as delivered");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A receipt that cannot be delivered does not delay the receipts of other users.
#[tokio::test]
async fn a_user_without_a_sound_address_holds_up_nobody() {
    let fixture = BookingFixture::open().await;
    fixture.execute("UPDATE users SET email = 'no address' WHERE id = 1").await;
    fixture.execute("INSERT INTO users (id, email, stripe_customer_id) VALUES (3, 'third@example.com', 'cus_3')").await;
    let receipts = "INSERT INTO receipts (ride_id, record_offset, data)
        SELECT ride, ride, format('{\"ride_id\":%s,\"user_id\":%s,\"amount\":2000,\"currency\":\"usd\"}', ride, person)::json
        FROM (VALUES (1, 1), (2, 3)) AS of (ride, person)";
    fixture.execute(receipts).await;
    let folder = tests::scratch_folder();
    let flags = ["receipts", "--drain", "--folder", folder.to_str().unwrap()];
    let output = Process::start(&fixture.world, "receipts", &flags).fail(1).await;
    assert!(output.contains("the receipt of ride 1"), "{output}");
    assert!(folder.join("2.eml").exists(), "{output}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn ra_t26_to_t28_old_requests_are_forgotten_and_unfinished_ones_listed() {
    let fixture = BookingFixture::open().await;
    let reap = async || Process::start(&fixture.world, "reaper", &["--once"]).succeed().await;
    reap().await;
    assert_eq!(fixture.book(KEY).await.0, 201);
    fixture.stop_at_ride_created("unfinished-business-of-somebody").await;
    reap().await;
    assert_eq!(fixture.number("SELECT count(*) FROM tracked_operations").await, 2, "T27: young");
    fixture.age("73 hours").await;
    reap().await;
    assert_eq!(fixture.number("SELECT count(*) FROM tracked_operations").await, 0, "T26: old");
    assert_eq!(fixture.number("SELECT count(*) FROM rides").await, 2, "rides stay");
    let listed = "SELECT key, recovery_point, ride_id FROM reaped_requests";
    let listed = fixture.world.client().query_one(listed, &[]).await.unwrap();
    assert_eq!(listed.get::<_, &str>(0), "unfinished-business-of-somebody");
    assert_eq!(listed.get::<_, &str>(1), "ride_created");
    assert_eq!(listed.get::<_, i64>(2), fixture.number("SELECT max(id) FROM rides").await);
}

/// The simulator's clients retry, leave before the response, and send requests five times.
#[tokio::test]
async fn ra_t29_the_simulator_books_and_what_it_leaves_is_completed() {
    let fixture = BookingFixture::open().await;
    let port = fixture.api.port().to_string();
    let flags =
        ["--api-port", &port, "--booked", "1", "--count", "60", "--rate", "max", "--concurrency", "8", "--seed", "7"];
    Process::start(&fixture.world, "simulator", &flags).succeed().await;
    let unfinished = "SELECT count(*) FROM tracked_operations WHERE status <> 'finished'";
    assert_eq!(fixture.number("SELECT count(*) FROM tracked_operations").await, 60);
    let left_count = fixture.number(unfinished).await;
    assert!((5..30).contains(&left_count), "a quarter of the clients leave: {left_count}");
    fixture.age("1 hour").await;
    assert_eq!(fixture.complete().await, (usize::try_from(left_count).unwrap(), 0));
    assert_eq!(fixture.number(unfinished).await, 0);
    assert_eq!(fixture.number("SELECT count(*) FROM rides").await, 60);
    assert_eq!(fixture.payments.charges().await.len(), 60);
    let receipts = "SELECT count(*) FROM staged_log_records WHERE object = 'receipt'";
    assert_eq!(fixture.number(receipts).await, 60);
}

#[tokio::test]
async fn all_consumers_count_booked_rides_like_others() {
    let fixture = BookingFixture::open().await;
    fixture.world.write_rides(10).await;
    assert_eq!(fixture.book(KEY).await.0, 201);
    fixture.world.drain_streamer(&mut fixture.world.streamer()).await;
    let progress = fixture.world.drain_consumer(&mut fixture.world.consumer("consumer0")).await;
    assert_eq!((progress.applied_count, progress.passed_count), (11, 2), "charge and receipt are also records");
    fixture.world.assert_converged(&["consumer0"]).await;
}
