//! `audit --payments`: each difference between charges, bookings and receipts is found, and nothing else is.

use tests::Process;

use crate::booking_fixture::{BAD_SOURCE, BookingFixture, JOURNEY, KEY};

/// Runs the audit. Returns its exit status and its output.
async fn audit(fixture: &BookingFixture, flags: &[&str]) -> (i32, String) {
    let flags = [&["--no-stream", "--payments"], flags, &fixture.payments.flags()[..]].concat();
    let mut process = Process::start(&fixture.world, "audit", &flags);
    let status = process.ended().await;
    (status.code().unwrap(), process.read_to_end().await)
}

async fn assert_different(fixture: &BookingFixture, difference: &str) {
    let (status, output) = audit(fixture, &[]).await;
    assert_eq!(status, 1, "{output}");
    assert!(output.contains(&format!("DIFFERENCE: {difference}")), "{difference}: {output}");
    assert!(output.contains("\n1 differences"), "{output}");
}

#[tokio::test]
async fn charges_and_bookings_that_agree_are_equal() {
    let fixture = BookingFixture::open().await;
    for number in 0..3 {
        assert_eq!(fixture.book(&format!("{KEY}-{number}")).await.0, 201);
    }
    assert_eq!(fixture.post(&[("authorization", BAD_SOURCE), ("idempotency-key", KEY)], JOURNEY).await.0, 402);
    // Charged, and not noted yet.
    fixture.payments.plan("error-after", 1).await;
    assert_eq!(fixture.book(&format!("{KEY}-in-progress")).await.0, 503);
    fixture.payments.plan("pending", 1).await;
    assert_eq!(fixture.book(&format!("{KEY}-pending")).await.0, 503);
    // Another program's charges, with the same account.
    for metadata in
        ["", "&metadata[charge_key]=no+uuid", "&metadata[installation]=3b1cb8c2-0f0d-4f4f-9d4e-5a4f8a1f0c11"]
    {
        fixture.payments.charge(&format!("amount=50&currency=usd&customer=cus_good{metadata}")).await;
    }
    for flags in [&[][..], &["--since", "1h"]] {
        let (status, output) = audit(&fixture, flags).await;
        assert_eq!(status, 0, "{output}");
        let line =
            "payments: 6 charges, 3 paid and equal to their bookings, 2 in progress, 3 of others; 3 receipts not";
        assert!(output.contains(line) && output.ends_with("all is equal\n"), "{output}");
    }
}

#[tokio::test]
async fn every_difference_is_found() {
    for (change, difference) in [
        (
            "UPDATE bookings SET amount_cents = 1999",
            "ride 1 is booked for (1999, \"usd\", \"cus_good\"), and its charge ch_",
        ),
        (
            "UPDATE bookings SET currency = 'eur'",
            "ride 1 is booked for (2000, \"eur\", \"cus_good\"), and its charge ch_",
        ),
        ("UPDATE bookings SET stripe_customer_id = 'cus_other'", "ride 1 is booked for (2000, \"usd\", \"cus_other\")"),
        ("UPDATE bookings SET stripe_charge_id = NULL", "ride 1 was charged by ch_"),
        ("UPDATE bookings SET charge_key = gen_random_uuid(), stripe_charge_id = NULL", "the charge ch_"),
        (
            "INSERT INTO receipts (ride_id, record_offset, data) VALUES (77, 1, '{}')",
            "ride 77 has a receipt and no charge",
        ),
    ] {
        let fixture = BookingFixture::open().await;
        assert_eq!(fixture.book(KEY).await.0, 201);
        fixture.execute(change).await;
        assert_different(&fixture, difference).await;
    }
}

#[tokio::test]
async fn a_booking_without_its_charge_and_a_charge_too_many_are_found() {
    let fixture = BookingFixture::open().await;
    assert_eq!(fixture.book(KEY).await.0, 201);
    let invent = "INSERT INTO rides (distance_mm) VALUES (1);
        INSERT INTO bookings (ride_id, user_id, origin_lat, origin_lon, target_lat, target_lon, amount_cents, currency,
                              stripe_customer_id, stripe_charge_id)
        SELECT max(id), 1, 0, 0, 0, 0, 2000, 'usd', 'cus_good', 'ch_invented' FROM rides";
    fixture.execute(invent).await;
    let (status, output) = audit(&fixture, &[]).await;
    assert_eq!(status, 1, "{output}");
    assert!(output.contains("ride 2 was accepted, and the processor has no charge ch_invented"), "{output}");

    let fixture = BookingFixture::open().await;
    assert_eq!(fixture.book(KEY).await.0, 201);
    let key = fixture.world.client().query_one("SELECT charge_key::text FROM bookings", &[]).await.unwrap();
    let key: &str = key.get(0);
    let twice = format!("amount=2000&currency=usd&customer=cus_good&metadata[charge_key]={key}");
    fixture.payments.charge(&twice).await;
    assert_different(&fixture, "ride 1 was charged twice: ch_").await;
}

#[tokio::test]
async fn without_a_key_of_the_processor_the_audit_says_what_it_needs() {
    let fixture = BookingFixture::open().await;
    let mut process = Process::start(&fixture.world, "audit", &["--no-stream", "--payments"]);
    assert_ne!(process.ended().await.code(), Some(0));
    assert!(process.read_to_end().await.contains("need STRIPE_API_KEY"));
}
