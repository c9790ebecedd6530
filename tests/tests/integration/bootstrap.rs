//! The baseline keeps the sum of the reaped records, and new consumers start with it (I4, I8).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use common::shutdown::CancellationToken;
use consumer::{Consumer, DistanceFold, Interruption, State};
use tests::{Process, World, wait_until};
use tokio::task::JoinHandle;

use crate::api::Api;
use crate::consumer::{OBJECT_COUNTS, OBJECT_COUNTS_TABLE};
use crate::reaper::reap;

/// The pause between two rides of [`Traffic`].
const PAUSE: Duration = Duration::from_millis(2);

/// A task that posts rides to the api until it is stopped.
pub struct Traffic {
    is_over: Arc<AtomicBool>,
    posting: JoinHandle<()>,
}

impl Traffic {
    pub async fn start(world: &World) -> Self {
        let (api, is_over) = (Api::start(world).await, Arc::new(AtomicBool::new(false)));
        let told = Arc::clone(&is_over);
        let posting = tokio::spawn(async move {
            while !told.load(Ordering::Relaxed) {
                assert_eq!(api.post_form("distance=12.345").await.0, 201);
                // This is no wait for a condition: without a pause, the traffic takes the processors from the processes under
                // test, and every comparison reads more rides.
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { is_over, posting }
    }

    /// Returns when the last ride is confirmed.
    pub async fn stop(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.posting.await.unwrap();
    }
}

/// Waits until `count` further rides are written.
pub async fn more_rides(world: &World, count: i64) {
    let before = world.sql_totals().await.0;
    wait_until("more rides are written", async || world.sql_totals().await.0 >= before + count).await;
}

/// Waits until everything is folded, and compares the consumers with SQL.
pub async fn converge(world: &World, names: &[&str]) {
    wait_until("all is folded", async || {
        let Some(head) = world.settled_head().await else { return false };
        let behind = format!("SELECT count(*) FROM checkpoints WHERE NOT is_baseline AND last_offset < {head}");
        world.number(&behind).await == 0
    })
    .await;
    world.assert_converged(names).await;
}

async fn wait_for_reaping(world: &World) {
    let before = pglog::first_retained(world.client(), pglog::Partition::FIRST).await.unwrap();
    wait_until("records are gone", async || {
        pglog::first_retained(world.client(), pglog::Partition::FIRST).await.unwrap() > before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_consumers_start_while_rides_keep_coming_and_the_records_before_are_gone() {
    let world = World::new().await;
    let traffic = Traffic::start(&world).await;
    let mut processes = vec![
        Process::start(&world, "streamer", &["--fault-rate", "0.1"]),
        Process::start(&world, "consumer", &["old", "--fault-rate", "0.1"]),
        Process::start(&world, "reaper", &["--keep", "0s", "--interval", "10ms"]),
    ];
    for round in 0..3 {
        wait_for_reaping(&world).await;
        let from_baseline = format!("from-baseline-{round}");
        processes.push(Process::start(&world, "consumer", &[&from_baseline, "--fault-rate", "0.1"]));
        for source in ["old", "baseline"] {
            let name = format!("copy-of-{source}-{round}");
            let copying = Process::start(&world, "consumer", &[&name, "--copy-from", source]).succeed().await;
            assert!(copying.contains(&format!("starts with the state of {source} at offset")), "{copying}");
            processes.push(Process::start(&world, "consumer", &[&name]));
        }
        more_rides(&world, 200).await;
    }
    traffic.stop().await;
    let registered = "SELECT count(*) FROM checkpoints WHERE NOT is_baseline";
    wait_until("all ten are registered", async || world.number(registered).await == 10).await;
    let rows = world.client().query("SELECT name FROM checkpoints WHERE NOT is_baseline", &[]).await.unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    converge(&world, &names).await;
    for process in processes {
        process.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reaper_killed_again_and_again_keeps_every_ride_in_the_baseline() {
    let world = World::new().await;
    let traffic = Traffic::start(&world).await;
    let streamer = Process::start(&world, "streamer", &[]);
    let consumer = Process::start(&world, "consumer", &["old"]);
    for _ in 0..10 {
        let reaper = Process::start(&world, "reaper", &["--keep", "0s", "--interval", "1ms"]);
        wait_for_reaping(&world).await;
        reaper.kill().await;
    }
    traffic.stop().await;
    converge(&world, &["old"]).await;
    reap(&world, &["--keep", "0s"]).await;
    world.drain_consumer(&mut world.consumer("new")).await;
    world.assert_converged(&["old", "new", "baseline"]).await;
    consumer.stop().await;
    streamer.stop().await;
}

#[tokio::test]
async fn nothing_is_reaped_that_is_not_in_the_baseline() {
    let world = World::new().await;
    let mut streamer = world.streamer();
    for _ in 0..3 {
        world.write_rides(10).await;
        world.drain_streamer(&mut streamer).await;
    }
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    let mut client = world.connect().await;
    let now = Duration::ZERO;
    // The reaper is killed before it has moved the baseline, and then while it moves it.
    assert_eq!(pglog::reapable(&client, pglog::Partition::FIRST, now).await.unwrap(), Some(30));
    assert_eq!(pglog::reap(&mut client, pglog::Partition::FIRST, now).await.unwrap().batch_count, 0);
    let mut baseline = baseline(&world);
    assert!(baseline.fold_up_to(15).await.unwrap());
    assert_eq!(
        pglog::reap(&mut client, pglog::Partition::FIRST, now).await.unwrap().record_count,
        10,
        "the reaper removes whole batches only"
    );
    assert_eq!(reap(&world, &["--keep", "0s"]).await.record_count, 20, "the next reaper goes on");
    world.drain_consumer(&mut world.consumer("new")).await;
    world.assert_converged(&["consumer0", "new", "baseline"]).await;
}

fn baseline(world: &World) -> Consumer<State<DistanceFold>> {
    let config = reaper::Config::parse_from(["reaper".to_owned()].into_iter().chain(world.flags("reaper")));
    Consumer::baseline(&config.postgres, pglog::Partition::FIRST, State::default(), CancellationToken::new())
}

#[tokio::test]
async fn the_baseline_passes_no_consumer_and_holds_none_back() {
    let world = World::new().await;
    let mut streamer = world.streamer();
    for _ in 0..3 {
        world.write_rides(10).await;
        world.drain_streamer(&mut streamer).await;
    }
    world.drain_consumer(&mut world.consumer("fast")).await;
    let mut baseline = baseline(&world);
    assert!(baseline.fold_up_to(10).await.unwrap());
    // This consumer registers after the reaper has decided to move the baseline to 30.
    let mut slow = world.consumer("slow");
    slow.run_once(consumer::Fault::CrashBeforeCommit, None).await.unwrap_err();
    let error = baseline.fold_up_to(30).await.unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Interruption::HeldBack)), "{error:#}");
    assert_eq!(world.committed("baseline").await.0, 10);
    world.drain_consumer(&mut slow).await;
    assert_eq!(
        pglog::lowest_checkpoint(world.client(), pglog::Partition::FIRST).await.unwrap(),
        Some(30),
        "the baseline is not a consumer"
    );
    assert!(baseline.fold_up_to(30).await.unwrap());
    world.assert_converged(&["fast", "slow", "baseline"]).await;
    let api = Api::start(&world).await;
    let totals = api.get("/totals").await.1;
    assert!(totals["converged"] == true && !totals.to_string().contains("baseline"), "{totals}");
}

#[tokio::test]
async fn a_new_consumer_of_a_fold_without_a_baseline_says_how_to_start() {
    let world = World::new().await;
    let mut streamer = world.streamer();
    world.carry_rides(100, &mut streamer, &mut world.consumer("old")).await;
    reap(&world, &["--keep", "0s"]).await;
    world.write_rides(5).await;
    world.drain_streamer(&mut streamer).await;
    let mut redis = world.redis().await;
    let _: i64 =
        redis::cmd("XTRIM").arg(world.stream_name()).arg("MAXLEN").arg(0).query_async(&mut redis).await.unwrap();
    world.client().batch_execute(OBJECT_COUNTS_TABLE).await.unwrap();
    let config = world.consumer_config("objects");
    let error = consumer::run(config, OBJECT_COUNTS, CancellationToken::new()).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("consumer objects cannot begin at offset 1") && text.contains("are reaped"), "{text}");
    assert!(text.contains("--copy-from OTHER") && text.contains("--from retained"), "{text}");
    let registered = "SELECT count(*) FROM checkpoints WHERE name = 'objects'";
    assert_eq!(world.number(registered).await, 0, "a failed start leaves nothing that would hold back the reaper");
}

#[tokio::test]
async fn a_copied_state_comes_with_what_it_lacks() {
    let world = World::new().await;
    let mut streamer = world.streamer();
    world.stage_data(r#"{"id":1,"distance_mm":-5}"#).await;
    world.carry_rides(10, &mut streamer, &mut world.consumer("old")).await;
    Process::start(&world, "consumer", &["copy", "--copy-from", "old"]).succeed().await;
    reap(&world, &["--keep", "0s"]).await;
    world.drain_consumer(&mut world.consumer("new")).await;
    world.assert_converged(&["old", "copy", "new", "baseline"]).await;
    let letters = "SELECT count(DISTINCT name) FROM dead_letters WHERE record_offset = 1";
    assert_eq!(world.number(letters).await, 4, "each consumer has the dead letter");
}

#[tokio::test]
async fn a_log_that_was_reaped_before_there_were_baselines_gets_one() {
    let world = World::new().await;
    let (mut streamer, mut old) = (world.streamer(), world.consumer("old"));
    for _ in 0..2 {
        world.carry_rides(10, &mut streamer, &mut old).await;
        assert_eq!(reap(&world, &["--keep", "0s"]).await.record_count, 10);
        world.client().batch_execute("DELETE FROM checkpoints WHERE is_baseline").await.unwrap();
    }
    world.carry_rides(10, &mut streamer, &mut old).await;
    reap(&world, &["--keep", "0s"]).await;
    world.drain_consumer(&mut world.consumer("new")).await;
    world.assert_converged(&["old", "new", "baseline"]).await;
}
