//! Bookings after a loss of memory: Postgres was put back, the processor has forgotten the key, a newer
//! program words the charge in another way, or the client uses a key again.

use serde_json::{Value, json};
use tests::{Payments, PrivatePostgres, PrivateRedis, Process, World};

use crate::api::Api;
use crate::booking_fixture::{BookingFixture, JOURNEY, KEY, USER};

const OTHER_KEY: &str = "b3b6cf9a-7d6b-4a53-9a56-0d2a6e3b6e52";
const THIRD_KEY: &str = "0c9b7f2e-5d0a-4a39-8e0a-6d1f4c1f2b77";

/// A fixture whose Postgres can be put back.
async fn on_a_cluster(postgres: &PrivatePostgres, redis: &PrivateRedis) -> BookingFixture {
    let payments = Payments::start().await;
    let mut world = World::on(&postgres.url(), &redis.url()).await;
    world.forget_database();
    let api = Api::start_with(&world, payments.stripe()).await;
    BookingFixture { world, payments, api, http: reqwest::Client::new() }
}

async fn ride_of(fixture: &BookingFixture, key: &str) -> i64 {
    let (status, _, body) = fixture.book(key).await;
    assert_eq!(status, 201, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["ride"]["id"].as_i64().unwrap()
}

/// The retry finds the charge that the processor has made before Postgres was put back, whatever number the ride has now.
#[tokio::test]
async fn a_retry_after_postgres_was_put_back_is_not_charged_again() {
    let mut postgres = PrivatePostgres::start().await;
    let redis = PrivateRedis::start(&[]).await;
    let fixture = on_a_cluster(&postgres, &redis).await;
    ride_of(&fixture, THIRD_KEY).await;
    let backup = postgres.stop_and_copy().await;
    postgres.start_again().await;
    let fixture = BookingFixture { world: fixture.world.reconnected().await, ..fixture };
    let lost = [ride_of(&fixture, KEY).await, ride_of(&fixture, OTHER_KEY).await];
    let charges = fixture.payments.charges().await;
    postgres.put_back(&backup).await;
    postgres.start_again().await;
    let fixture = BookingFixture { world: fixture.world.reconnected().await, ..fixture };
    assert_eq!(fixture.number("SELECT count(*) FROM bookings").await, 1, "two bookings are gone");
    // The clients come back in another order, so the two rides have swapped their numbers.
    let again = [ride_of(&fixture, OTHER_KEY).await, ride_of(&fixture, KEY).await];
    assert_eq!(again, lost);
    assert_eq!(fixture.payments.charges().await, charges, "nothing was charged again");
    let charged = "SELECT count(DISTINCT stripe_charge_id) FROM bookings";
    assert_eq!(fixture.number(charged).await, 3, "each booking has the charge of its own request");
    // Another ride under a key that was used before is another order.
    let elsewhere = JOURNEY.replace("52.52", "52.53");
    let headers = [("authorization", USER), ("idempotency-key", KEY)];
    assert_eq!(fixture.post(&headers, &elsewhere).await.0, 409);
    ride_of(&fixture, THIRD_KEY).await;
    assert_eq!(fixture.payments.charges().await.len(), 3);
}

/// The charge is found although its key is forgotten, and although the client has never heard of it.
#[tokio::test]
async fn a_booking_that_is_too_old_for_its_key_is_settled_by_what_the_processor_has() {
    for (is_charged, age) in [(true, "23 hours 11 minutes"), (false, "23 hours 11 minutes"), (true, "2 hours")] {
        let fixture = BookingFixture::open().await;
        if is_charged {
            fixture.payments.plan("error-after", 1).await;
            assert_eq!(fixture.book(KEY).await.0, 503);
        } else {
            fixture.stop_at_ride_created(KEY).await;
        }
        fixture.payments.forget_keys().await;
        fixture.age(age).await;
        assert_eq!(fixture.complete().await, (1, 0), "{is_charged} {age}");
        if is_charged {
            fixture.assert_booked_once().await;
            assert_eq!(fixture.book(KEY).await.0, 201);
            continue;
        }
        let (status, _, body) = fixture.book(KEY).await;
        assert_eq!(status, 402, "{body}");
        assert!(body.contains("Nothing was charged."), "{body}");
        assert_eq!(fixture.payments.charges().await.len(), 0);
        assert_eq!(fixture.number("SELECT count(*) FROM staged_log_records WHERE action = 'decline'").await, 1);
    }
}

/// The charge of a booking from before version 6 cannot be looked for: it waits for a person, and is shown at once.
#[tokio::test]
async fn a_booking_that_cannot_be_settled_waits_for_a_person() {
    let fixture = BookingFixture::open().await;
    fixture.stop_at_ride_created(KEY).await;
    fixture.execute("UPDATE bookings SET charge_form = NULL").await;
    fixture.age("23 hours 1 minute").await;
    assert_eq!(fixture.complete().await, (0, 1));
    assert_eq!(fixture.book(KEY).await.0, 502);
    assert_eq!(fixture.payments.charges().await.len(), 0);
    let mut doctor = Process::start(&fixture.world, "doctor", &fixture.payments.flags());
    doctor.ended().await;
    let output = doctor.read_to_end().await;
    assert!(output.contains("warn bookings.unfinished: 1 cannot be charged: ride 1 of user 1 since"), "{output}");
    assert!(output.contains("ok   bookings.processor: "), "{output}");
    fixture.age("49 hours").await;
    Process::start(&fixture.world, "reaper", &["--once"]).succeed().await;
    assert_eq!(fixture.number("SELECT count(*) FROM reaped_requests").await, 1);
    let mut doctor = Process::start(&fixture.world, "doctor", &[]);
    doctor.ended().await;
    let output = doctor.read_to_end().await;
    assert!(
        output.contains("warn bookings.reaped: 1 requests were removed unfinished: operation 1, ride 1"),
        "{output}"
    );
    fixture.execute("DELETE FROM reaped_requests").await;
    let mut doctor = Process::start(&fixture.world, "doctor", &[]);
    doctor.ended().await;
    let output = doctor.read_to_end().await;
    assert!(output.contains("ok   bookings.reaped: none"), "a person has settled it: {output}");
}

/// A charge of another amount under our key is no payment for the ride: a person has to look.
#[tokio::test]
async fn a_charge_of_another_amount_settles_nothing() {
    let fixture = BookingFixture::open().await;
    fixture.payments.plan("error-after", 1).await;
    assert_eq!(fixture.book(KEY).await.0, 503);
    fixture.execute("UPDATE bookings SET amount_cents = 2500").await;
    assert_eq!(fixture.book(KEY).await.0, 502);
    assert_eq!(fixture.number("SELECT count(*) FROM bookings WHERE stripe_charge_id IS NULL").await, 1);
    assert_eq!(fixture.number("SELECT count(*) FROM staged_log_records WHERE object <> 'ride'").await, 0);
}

/// The stored fields are sent, even if the program would write other ones today.
#[tokio::test]
async fn a_booking_in_flight_is_charged_in_the_words_of_the_release_that_took_it() {
    let fixture = BookingFixture::open().await;
    fixture.stop_at_ride_created(KEY).await;
    let other_words =
        "UPDATE bookings SET charge_form = jsonb_set(charge_form::jsonb, '{description}', '\"Ride no. 1\"')::json";
    fixture.execute(other_words).await;
    fixture.payments.plan("error-after", 2).await;
    assert_eq!([fixture.book(KEY).await.0, fixture.book(KEY).await.0], [503, 201]);
    assert_eq!(fixture.payments.charges().await[0].description.as_deref(), Some("Ride no. 1"));
    fixture.assert_booked_once().await;

    // A booking of version 5 stored no words: the charge is asked for as version 5 did.
    let fixture = BookingFixture::open().await;
    fixture.stop_at_ride_created(KEY).await;
    fixture.execute("UPDATE bookings SET charge_form = NULL, charge_key = gen_random_uuid()").await;
    assert_eq!(fixture.book(KEY).await.0, 201);
    let charge = &fixture.payments.charges().await[0];
    assert_eq!((charge.description.as_deref(), charge.metadata.len()), (Some("Charge for ride 1"), 0));
    fixture.assert_booked_once().await;
}

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
    let first = fixture.payments.charges().await[0].clone();
    let (status, is_replayed, _) = fixture.book(KEY).await;
    assert_eq!((status, is_replayed), (201, false), "a new ride");
    let charges = fixture.payments.charges().await;
    assert_eq!(charges.len(), 2);
    assert_ne!(charges[0].charge_key(), first.charge_key());
    assert_eq!(fixture.number("SELECT count(DISTINCT charge_key) FROM bookings").await, 2);
}

/// A copy that lives beside the original has charges of its own.
#[tokio::test]
async fn the_secret_is_read_by_nobody_and_renewed_in_a_copy() {
    let fixture = BookingFixture::open().await;
    let (journey, client) = ("ARRAY[1, 2, 3, 4]::float8[]", fixture.world.client());
    let derive = format!("SELECT derive_charge_key(1, '{KEY}', {journey})::text, installation_id()::text");
    let derived = async || {
        let row = client.query_one(&derive, &[]).await.unwrap();
        [row.get::<_, String>(0), row.get::<_, String>(1)]
    };
    let first = derived().await;
    assert_eq!(derived().await, first);
    launcher::apply_schema(client).await.unwrap();
    assert_eq!(derived().await, first, "the schema is applied again");
    fixture.execute("UPDATE charge_secret SET secret = DEFAULT, system_identifier = DEFAULT").await;
    let second = derived().await;
    assert!(first.iter().all(|text| !second.contains(text)), "{first:?} {second:?}");
    for role in tests::roles() {
        let client = fixture.world.connect_as(role).await;
        client.batch_execute("SELECT secret FROM charge_secret").await.unwrap_err();
        let may_derive = client.batch_execute(&derive).await.is_ok();
        assert_eq!(may_derive, ["api", "completer"].contains(&role), "{role}");
    }
    fixture.execute("UPDATE charge_secret SET system_identifier = 1").await;
    let mut doctor = Process::start(&fixture.world, "doctor", &[]);
    doctor.ended().await;
    let output = doctor.read_to_end().await;
    assert!(output.contains("warn bookings.secret: it was made in another cluster"), "{output}");
}
