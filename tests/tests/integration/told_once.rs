//! A failure that repeats is told when it begins, now and then with a count, and when it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Process, Watched, World, wait_until};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Every write fails as on a full disk. Postgres names another file and block each time.
const FULL_DISK: &str = "
    CREATE FUNCTION refuse_write() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE 'could not extend file \"base/5/%\": wrote only % of 8192 bytes at block %: No space left on device',
            (random() * 1e6)::int, (random() * 8192)::int, (random() * 1e6)::int USING ERRCODE = 'disk_full';
    END $$;
    CREATE TRIGGER full_disk BEFORE INSERT ON staged_log_records EXECUTE FUNCTION refuse_write()";

/// Requests of all clients.
#[derive(Default)]
struct Counts {
    accepted: AtomicU64,
    unavailable: AtomicU64,
    slowest_ms: AtomicU64,
    is_over: AtomicBool,
}

/// Posts one ride after another, without a pause.
async fn post_rides(url: String, counts: Arc<Counts>) {
    let client = reqwest::Client::new();
    while !counts.is_over.load(Ordering::SeqCst) {
        let began_at = Instant::now();
        let request = client.post(&url).header("content-type", "application/json").body(r#"{"distance":12.5}"#);
        let status = request.send().await.unwrap().status().as_u16();
        counts.slowest_ms.fetch_max(began_at.elapsed().as_millis() as u64, Ordering::SeqCst);
        match status {
            201 => counts.accepted.fetch_add(1, Ordering::SeqCst),
            503 => counts.unavailable.fetch_add(1, Ordering::SeqCst),
            other => panic!("{other}"),
        };
    }
}

/// The lines of this message.
fn lines(process: &Process, message: &str) -> Vec<Value> {
    let output = process.output();
    let all = output.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|line| line["message"] == message).collect()
}

#[tokio::test]
async fn a_full_disk_under_load_is_told_once_and_then_with_a_count() {
    let world = World::new().await;
    let mut api = Process::start(&world, "api", &["--api-port", "0", "--log-format", "json"]);
    api.wait_for("api started").await;
    let started = &lines(&api, "api started")[0];
    let url = format!("http://{}/rides", started["address"].as_str().unwrap());
    let (counts, mut clients) = (Arc::<Counts>::default(), JoinSet::new());
    world.client().batch_execute(FULL_DISK).await.unwrap();
    for _ in 0..16 {
        clients.spawn(post_rides(url.clone(), Arc::clone(&counts)));
    }
    wait_until("the failure is told again", async || !lines(&api, "a failure goes on").is_empty()).await;
    let unavailable_count = counts.unavailable.load(Ordering::SeqCst);
    assert!(unavailable_count >= 16, "each client is refused: {unavailable_count}");
    let slowest_ms = counts.slowest_ms.load(Ordering::SeqCst);
    assert!(slowest_ms < 5_000, "each client is refused soon: {slowest_ms} ms");

    world.client().batch_execute("DROP TRIGGER full_disk ON staged_log_records").await.unwrap();
    wait_until("the failure has ended", async || !lines(&api, "a failure has ended").is_empty()).await;
    counts.is_over.store(true, Ordering::SeqCst);
    clients.join_all().await;
    let first = lines(&api, "postgres is away");
    assert_eq!(first.len(), 1, "{}", api.output());
    assert_eq!(first[0]["level"], "WARN");
    let reminders = lines(&api, "a failure goes on");
    assert!((1..=3).contains(&reminders.len()), "{}", api.output());
    for reminder in &reminders {
        assert!(reminder["failure"].as_str().unwrap().contains("No space left on device"), "{reminder}");
    }
    // The writer pauses after each failure. Without pauses there would be thousands of them.
    let ended = &lines(&api, "a failure has ended")[0];
    let (count, lasted_s) = (ended["count"].as_u64().unwrap(), ended["lasted_s"].as_u64().unwrap());
    assert!(count >= 10 && count <= 10 + 5 * lasted_s, "{ended}");
    let accepted_count = counts.accepted.load(Ordering::SeqCst) as i64;
    assert!(accepted_count > 0, "rides are accepted again");
    assert_eq!(world.sql_totals().await, (accepted_count, 12_500 * accepted_count));
    assert_eq!(world.number("SELECT count(*) FROM staged_log_records").await, accepted_count);
    api.stop().await;
}

#[tokio::test]
async fn a_process_that_stops_tells_what_it_has_counted() {
    let world = World::new().await;
    let mut streamer = Watched::start(&world, "streamer", &["--redis-url", "redis://127.0.0.1:1"]).await;
    let retried = async || streamer.metric("rocket_rides_retries_total").await >= 4.0;
    wait_until("it has failed again and again", retried).await;
    streamer.process.signal(Signal::SIGTERM);
    assert!(streamer.process.ended().await.success());
    let output = streamer.process.read_to_end().await;
    let first = output.lines().filter(|line| line.contains(" publishing failed, trying again error="));
    assert_eq!(first.count(), 1, "{output}");
    let ended: Vec<&str> = output.lines().filter(|line| line.contains(" a failure has ended ")).collect();
    assert_eq!(ended.len(), 1, "{output}");
    assert!(ended[0].contains("Connection refused"), "{output}");
    let count = ended[0].split(" count=").nth(1).unwrap().split(' ').next().unwrap();
    assert!(count.parse::<u64>().unwrap() >= 4, "{output}");
}
