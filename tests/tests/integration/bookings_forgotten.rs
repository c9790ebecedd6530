//! What one side has forgotten, the other remembers.

use serde_json::json;
use tests::Process;

use crate::booking_fixture::{BookingFixture, JOURNEY, KEY, USER};

/// Another release may write the same request in other bytes, and add fields.
#[tokio::test]
async fn a_request_is_known_by_its_meaning() {
    let fixture = BookingFixture::open().await;
    fixture.stop_at_ride_created(KEY).await;
    let stored = json!({"target_lon": 2.3522, "target_lat": 48.8566, "origin_lon": 13.405, "origin_lat": 52.52, "user_id": 1, "seats": 1});
    let store = format!("UPDATE tracked_operations SET payload = convert_to('{stored:#}', 'UTF8')");
    fixture.execute(&store).await;
    assert_eq!(fixture.book(KEY).await.0, 201);
    assert!(fixture.book(KEY).await.1, "replayed");
    fixture.assert_booked_once().await;
    let headers = [("authorization", USER), ("idempotency-key", KEY)];
    assert_eq!(fixture.post(&headers, &JOURNEY.replace("52.52", "52.53")).await.0, 409);
}

/// A response is kept for its time after the end of the request, and not after its beginning. Then the client may use its key
/// again: that is a new ride, and a new charge, although the processor still remembers the old one.
#[tokio::test]
async fn a_key_is_kept_from_the_end_of_its_request_and_then_free_for_a_new_ride() {
    let fixture = BookingFixture::open().await;
    fixture.stop_at_ride_created(KEY).await;
    fixture.age("71 hours").await;
    fixture.execute("UPDATE tracked_operations SET created_at = now() - INTERVAL '40 minutes'").await;
    assert_eq!(fixture.book(KEY).await.0, 201);
    fixture.execute("UPDATE tracked_operations SET created_at = now() - INTERVAL '73 hours'").await;
    let reap = async || Process::start(&fixture.world, "reaper", &["--once"]).succeed().await;
    reap().await;
    assert!(fixture.book(KEY).await.1, "it was finished just now");
    fixture.age("73 hours").await;
    reap().await;
    let (status, is_replayed, _) = fixture.book(KEY).await;
    assert_eq!((status, is_replayed), (201, false), "a new ride");
    assert_eq!(fixture.payments.charges().await.len(), 2);
    assert_eq!(fixture.number("SELECT count(DISTINCT charge_key) FROM bookings").await, 2);
}
