//! More clients than the api can serve at once: accepted rides are kept, further requests are refused, and every client gets its
//! turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::Limits;
use serde_json::Value;
use tests::{World, wait_until};
use tokio::task::JoinSet;

use crate::api::Api;

async fn start(world: &World, limits: Limits) -> Api {
    Api::start_within(&world.database_url_of("api").parse().unwrap(), limits).await
}

#[tokio::test]
async fn what_is_accepted_under_overload_is_there_and_the_others_are_told_when_to_come_again() {
    let world = World::new().await;
    let api = start(&world, Limits { queue_len_max: 20, group_len_max: 10, ..Limits::default() }).await;
    let mut locker = world.connect().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE rides IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let (client, url, refused_count) = (reqwest::Client::new(), api.url("/rides"), Arc::new(AtomicUsize::new(0)));
    let mut clients = JoinSet::new();
    for n in 1..=200 {
        let (client, url, refused_count) = (client.clone(), url.clone(), Arc::clone(&refused_count));
        clients.spawn(async move {
            let form = ("content-type", "application/x-www-form-urlencoded");
            let response = client.post(url).header(form.0, form.1).body(format!("distance={n}")).send().await.unwrap();
            let (status, retry_after) = (response.status().as_u16(), response.headers().contains_key("retry-after"));
            let answer: Value = response.json().await.unwrap();
            if status == 201 {
                return Some((answer["ride"]["id"].as_i64().unwrap(), n * 1000));
            }
            assert_eq!((status, answer["code"].as_str(), retry_after), (503, Some("overloaded"), true), "{answer}");
            refused_count.fetch_add(1, Ordering::SeqCst);
            None
        });
    }
    wait_until("the writer waits", async || world.waiting_count().await == 1).await;
    // One group is being written and the queue is full: every further request is refused at once.
    wait_until("further requests are refused", async || refused_count.load(Ordering::SeqCst) >= 200 - 30).await;
    lock.commit().await.unwrap();
    let mut accepted: Vec<(i64, i64)> = clients.join_all().await.into_iter().flatten().collect();
    assert!((20..=30).contains(&accepted.len()), "{accepted:?}");
    let rows = world.client().query("SELECT id, distance_mm FROM rides ORDER BY id", &[]).await.unwrap();
    accepted.sort_unstable();
    assert_eq!(
        accepted,
        rows.iter().map(|row| (row.get(0), row.get(1))).collect::<Vec<_>>(),
        "each client got its own ride"
    );
    assert_eq!(world.number("SELECT count(*) FROM staged_log_records").await, accepted.len() as i64);
}

#[tokio::test]
async fn every_client_gets_its_turn_when_not_all_fit_into_a_group() {
    let world = World::new().await;
    let api = Arc::new(start(&world, Limits { group_len_max: 5, ..Limits::default() }).await);
    let (total, mut clients) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
    for _ in 0..50 {
        let (api, total) = (Arc::clone(&api), Arc::clone(&total));
        clients.spawn(async move {
            let mut ride_count = 0;
            while total.fetch_add(1, Ordering::SeqCst) < 1_000 {
                assert_eq!(api.post_form("distance=1").await.0, 201);
                ride_count += 1;
            }
            ride_count
        });
    }
    // Readers are served at the same time.
    assert_eq!(api.get("/rides?limit=1").await.0, 200);
    let ride_counts: Vec<usize> = clients.join_all().await;
    assert!(ride_counts.iter().all(|count| *count >= 10), "20 each would be equal shares: {ride_counts:?}");
    let longest = "SELECT max(count) FROM (SELECT count(*) FROM staged_log_records GROUP BY transaction_id) AS groups";
    assert!(world.number(longest).await <= 5);
}

#[tokio::test]
async fn a_ride_wakes_who_listens_for_hints() {
    let world = World::new().await;
    let api = start(&world, Limits::default()).await;
    let hint_count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&hint_count);
    let config = world.database_url().parse().unwrap();
    let count = move || {
        counting.fetch_add(1, Ordering::SeqCst);
    };
    let listener = connect::postgres::connect(&config, "test", count).await.unwrap();
    listener.batch_execute(&format!("LISTEN {}", pglog::HINT_CHANNEL)).await.unwrap();
    for hint in 1..=3 {
        assert_eq!(api.post_form("distance=1").await.0, 201);
        wait_until("the hint is there", async || hint_count.load(Ordering::SeqCst) >= hint).await;
    }
}
