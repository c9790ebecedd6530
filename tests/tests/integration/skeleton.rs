//! The skeleton of a process, with the process of thirty lines in `libs/process/examples/ticker.rs`.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::{PrivatePostgres, Watched, World, wait_until};

/// How long the first four waits between two attempts take together at least. Each is drawn between half of its nominal wait
/// and all of it, and the nominal wait begins with 100 ms and doubles.
const FOUR_WAITS_MIN: Duration = Duration::from_millis(50 + 100 + 200 + 400);

/// The table into which the ticker inserts.
const TABLE: &str = "CREATE TABLE ticks (id BIGINT GENERATED ALWAYS AS IDENTITY)";

async fn tick_count(world: &World) -> i64 {
    world.number("SELECT count(*) FROM ticks").await
}

#[tokio::test]
async fn a_process_on_the_skeleton_backs_off_without_postgres_and_is_ready_again_with_it() {
    let mut postgres = PrivatePostgres::start().await;
    let mut world = World::on(&postgres.url(), "redis+unix:///nowhere").await;
    world.forget_database();
    world.client().batch_execute(TABLE).await.unwrap();
    let ticker = Watched::start(&world, "examples/ticker", &[]).await;
    wait_until("the ticker is ready", async || ticker.is_ready().await).await;
    assert_eq!(ticker.metric("rocket_rides_retries_total").await, 0.0);

    let killed_at = Instant::now();
    postgres.kill().await;
    // The fifth failure comes after four waits.
    let retries = async || ticker.metric("rocket_rides_retries_total").await >= 5.0;
    wait_until("the ticker has waited four times", retries).await;
    assert!(killed_at.elapsed() >= FOUR_WAITS_MIN, "{:?}", killed_at.elapsed());
    wait_until("the ticker is not ready", async || !ticker.is_ready().await).await;
    assert!(ticker.process.output().contains("step failed, trying again"), "{}", ticker.process.output());
    assert_eq!(ticker.get("/readyz").await.0, 503);
    assert_eq!(ticker.get("/livez").await.0, 200, "the process lives");

    postgres.start_again().await;
    let world = world.reconnected().await;
    let before = tick_count(&world).await;
    wait_until("the ticker is ready again", async || ticker.is_ready().await).await;
    wait_until("ticks are inserted again", async || tick_count(&world).await > before).await;
    ticker.process.stop().await;
}

#[tokio::test]
async fn a_process_on_the_skeleton_finishes_its_unit_of_work_after_sigterm_and_starts_no_other() {
    let world = World::new().await;
    world.client().batch_execute(TABLE).await.unwrap();
    let mut ticker = Watched::start(&world, "examples/ticker", &[]).await;
    wait_until("the ticker is ready", async || ticker.is_ready().await).await;

    // The unit in hand waits for this lock when the signal comes.
    let mut locker = world.connect().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE ticks IN EXCLUSIVE MODE").await.unwrap();
    wait_until("a tick waits for the lock", async || world.waiting_count().await == 1).await;
    let before = tick_count(&world).await;
    ticker.process.signal(Signal::SIGTERM);
    ticker.process.wait_for("stopping").await;
    lock.commit().await.unwrap();

    let status = ticker.process.ended().await;
    assert!(status.success(), "{status}:\n{}", ticker.process.output());
    assert_eq!(tick_count(&world).await, before + 1, "the tick in hand is there, and no other");
}
