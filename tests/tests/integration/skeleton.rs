//! The skeleton of a process, with the process of thirty lines in `libs/process/examples/ticker.rs`.

use nix::sys::signal::Signal;
use tests::{PrivatePostgres, Watched, World, wait_until};

/// The first waits between two attempts. Each is drawn between half of its nominal wait and all of it, and the nominal wait
/// doubles: so none is shorter than the wait before it.
const GROWING_WAIT_COUNT: usize = 4;

/// The table into which the ticker inserts.
const TABLE: &str = "CREATE TABLE ticks (id BIGINT GENERATED ALWAYS AS IDENTITY)";

async fn tick_count(world: &World) -> i64 {
    world.number("SELECT count(*) FROM ticks").await
}

/// The waits that the process has logged, in ms.
fn waits_ms(ticker: &Watched) -> Vec<u64> {
    let output = ticker.process.output();
    let values = output.split("wait_ms=").skip(1).map(|rest| rest.split_whitespace().next().unwrap());
    values.map(|value| value.parse().unwrap()).collect()
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

    postgres.kill().await;
    wait_until("the ticker is not ready", async || !ticker.is_ready().await).await;
    wait_until("the ticker has waited", async || waits_ms(&ticker).len() >= GROWING_WAIT_COUNT).await;
    let waits_ms = waits_ms(&ticker);
    let growing = &waits_ms[..GROWING_WAIT_COUNT];
    assert!(growing.is_sorted() && growing[0] < growing[GROWING_WAIT_COUNT - 1], "{waits_ms:?}");
    assert!(ticker.metric("rocket_rides_retries_total").await >= waits_ms.len() as f64);
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
