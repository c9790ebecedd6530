//! A BEGIN fails. A statement that was sent behind it would take effect by itself, so no program sends one: nothing of the
//! transaction happens, and it is tried again as a whole (I1, I5).

use std::collections::BTreeMap;

use tests::{BeginProxy, Payments, Process, World, wait_until};

use crate::booking_fixture::{JOURNEY, USER};

const BOOKING_COUNT: i64 = 6;

/// A world whose programs reach Postgres through the proxy.
struct Proxied {
    world: World,
    proxy: BeginProxy,
}

impl Proxied {
    fn start(&self, name: &str, args: &[&str]) -> Process {
        let direct: tokio_postgres::Config = self.world.database_url_of(name).parse().unwrap();
        let url = self.proxy.url(direct.get_user().unwrap(), direct.get_dbname().unwrap());
        Process::start(&self.world, name, &[&["--database-url", &url][..], args].concat())
    }

    async fn holds(&self, what: &str, query: &str) {
        let holds = async || {
            let row = self.world.client().query_one(query, &[]).await.unwrap();
            row.get::<_, Option<bool>>(0) == Some(true)
        };
        wait_until(what, holds).await;
    }
}

#[tokio::test]
async fn nothing_takes_effect_behind_a_begin_that_fails() {
    let world = World::new().await;
    let proxy = BeginProxy::start(world.database_url()).await;
    let (proxied, payments, folder) = (Proxied { world, proxy }, Payments::start().await, tests::scratch_folder());
    let booking = payments.flags();
    let mut api = proxied.start("api", &[&["--api-port", "0"][..], &booking].concat());
    let at_once = ["--age-min", "0s", "--idle-min", "0s", "--retry-wait", "100ms", "--interval", "100ms"];
    let processes = [
        proxied.start("streamer", &[]),
        proxied.start("consumer", &["consumer0"]),
        proxied.start("consumer", &["history", "--fold", "history"]),
        proxied.start("receipts", &["receipts", "--folder", folder.to_str().unwrap()]),
        proxied.start("completer", &[&at_once[..], &booking].concat()),
        proxied.start("reaper", &["--interval", "200ms", "--keep", "0s"]),
    ];
    let registered = "SELECT count(*) = 3 FROM checkpoints WHERE NOT is_baseline";
    proxied.holds("all consumers are registered", registered).await;
    let url = format!("http://{}/rides", api.address_after("api started").await);
    let client = reqwest::Client::new();
    for number in 0..BOOKING_COUNT {
        // Sent once: if the api fails, the completer goes on.
        let booking = client.post(&url).header("authorization", USER);
        let booking = booking.header("idempotency-key", format!("key-of-the-booking-{number}"));
        let booking = booking.header("content-type", "application/x-www-form-urlencoded").body(JOURNEY);
        booking.send().await.unwrap();
        assert_eq!(
            client.post(&url).json(&serde_json::json!({"distance": 1})).send().await.unwrap().status().as_u16(),
            201
        );
    }
    proxied.world.stage(1_000_000, -5).await;
    proxied
        .holds(
            "all bookings are finished",
            "SELECT count(*) = 6 AND bool_and(status = 'finished') FROM tracked_operations",
        )
        .await;
    let delivered = "SELECT count(delivered_at) = 6 FROM receipts";
    proxied.holds("all receipts are delivered", delivered).await;
    let records = 4 * BOOKING_COUNT + 1;
    let passed = format!("SELECT bool_and(last_offset = {records}) FROM checkpoints");
    proxied.holds("every consumer and the baseline have passed all", &passed).await;

    for _ in 0..2 {
        // The first BEGIN is broken. The record is rejected again after the second one.
        proxied.start("dead-letters", &["replay", "consumer0", "--all"]).fail(1).await;
    }
    assert_eq!(proxied.world.number("SELECT count(*) FROM dead_letters").await, 2, "of consumer0 and the baseline");
    assert_eq!(payments.charges().await.len() as i64, BOOKING_COUNT, "each booking is charged once");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count() as i64, BOOKING_COUNT, "one file per receipt");
    assert_eq!(proxied.world.number("SELECT count(*) FROM history").await, records);
    Process::start(&proxied.world, "audit", &[]).succeed().await;
    assert_begins(&proxied.proxy.seen());
    for process in processes {
        process.stop().await;
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

fn assert_begins(seen: &BTreeMap<String, tests::Begins>) {
    for program in [
        "api",
        "completer",
        "consumer baseline",
        "consumer consumer0",
        "consumer history",
        "consumer receipts",
        "dead-letters",
        "reaper",
    ] {
        let begins = seen.get(program).copied().unwrap_or_default();
        assert!(begins.broken_count > 0, "{program} began no transaction: {seen:#?}");
    }
    assert!(seen.values().all(|begins| begins.followed_count == 0), "sent behind a BEGIN: {seen:#?}");
}
