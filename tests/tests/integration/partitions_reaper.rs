//! The reaper of a log with several partitions: each has a baseline and a stream of its own, and none holds up another.

use common::shutdown::CancellationToken;
use tests::{Process, Watched, World, wait_until};

use crate::partitions_cluster::TestCluster;
use crate::partitions_operators::{
    COUNT, carry_rides, fold, fold_in, partition, partitions, publish, stream_of, sum_of, write_rides,
};
use crate::reaper::reap;

async fn staged_in(world: &World, number: i32) -> i64 {
    world.number(&format!("SELECT count(*) FROM staged_log_records WHERE partition = {number}")).await
}

async fn staged(world: &World) -> i64 {
    world.number("SELECT count(*) FROM staged_log_records").await
}

/// The lengths of all streams, in the order of their partitions.
async fn stream_lens(world: &World) -> Vec<i64> {
    let (servers, stream) = (world.redis_url().parse::<stream::Servers>().unwrap(), stream_of(world).await);
    let mut lens = Vec::new();
    for partition in partitions() {
        let key = stream.key(partition);
        let mut redis = stream::redis::connect(&servers.node_of(&key).await.unwrap()).await.unwrap();
        lens.push(redis::cmd("XLEN").arg(&key).query_async(&mut redis).await.unwrap());
    }
    lens
}

#[tokio::test]
async fn every_partition_is_reaped_and_its_stream_trimmed_and_new_consumers_start_exact() {
    let world = World::cut(COUNT).await;
    carry_rides(&world, 4000, &["c0"]).await;
    assert!(stream_lens(&world).await.iter().all(|len| *len > 300), "rides are in all streams");
    let cleaned = reap(&world, &["--keep", "0s"]).await;
    assert_eq!(cleaned.record_count, 4000);
    assert_eq!(staged(&world).await, 0);
    // XTRIM is approximate: it removes whole nodes of a hundred entries.
    let lens = stream_lens(&world).await;
    assert!(lens.iter().all(|len| *len < 100), "{lens:?}");
    assert_eq!(world.number("SELECT count(*) FROM checkpoints WHERE is_baseline").await, i64::from(COUNT));
    carry_rides(&world, 100, &["c0", "fresh"]).await;
    let sql = world.sql_totals().await;
    assert_eq!([sum_of(&world, "c0").await, sum_of(&world, "fresh").await], [sql, sql], "P3");
}

#[tokio::test]
async fn a_reaper_of_some_partitions_leaves_the_others_alone() {
    let world = World::cut(COUNT).await;
    carry_rides(&world, 400, &["c0"]).await;
    let before = staged_in(&world, 2).await;
    reap(&world, &["--keep", "0s", "--partitions", "3,5"]).await;
    assert_eq!((staged_in(&world, 3).await, staged_in(&world, 5).await), (0, 0));
    assert_eq!(staged_in(&world, 2).await, before);
    let output = Process::start(&world, "reaper", &["--once", "--partitions", "3,8"]).fail(2).await;
    assert!(output.contains("the log has 8 partition(s), and partition 8 is not one of them"), "{output}");
}

#[tokio::test]
async fn a_consumer_that_is_slow_in_one_partition_holds_back_that_one_alone() {
    let world = World::cut(COUNT).await;
    fold(&world, "slow").await;
    carry_rides(&world, 400, &["fast"]).await;
    fold_in(&world, "slow", partitions().filter(|one| *one != partition(3))).await;
    let kept = staged_in(&world, 3).await;
    let cleaned = reap(&world, &["--keep", "0s", "--dead-after", "0s"]).await;
    assert_eq!((staged(&world).await, staged_in(&world, 3).await), (kept, kept), "I8");
    let laggards: Vec<_> = cleaned.laggards.iter().map(|laggard| (laggard.partition, laggard.lag)).collect();
    assert_eq!(laggards, [(partition(3), kept)]);
    let output = Process::start(&world, "reaper", &["--once", "--dead-after", "0s"]).succeed().await;
    assert!(output.contains("partitions=\"3\"") && output.contains("`consumer slow --unregister`"), "{output}");
}

#[tokio::test]
async fn a_baseline_that_cannot_go_on_holds_up_no_other_partition() {
    let world = World::cut(COUNT).await;
    carry_rides(&world, 400, &["c0"]).await;
    reap(&world, &["--keep", "0s"]).await;
    carry_rides(&world, 400, &["c0"]).await;
    let kept = staged_in(&world, 3).await;
    let other = "UPDATE checkpoints SET fold = 'other' WHERE is_baseline AND partition = 3";
    world.client().execute(other, &[]).await.unwrap();
    let output = Process::start(&world, "reaper", &["--once", "--keep", "0s"]).fail(1).await;
    assert!(output.contains("partition 3: ") && output.contains("is_baseline AND partition = 3"), "{output}");
    assert_eq!((staged(&world).await, staged_in(&world, 3).await), (kept, kept));
}

/// A consumer that registers in all partitions holds one lock, which is that of the whole log.
#[tokio::test]
async fn no_partition_is_reaped_while_a_consumer_registers() {
    let world = World::cut(COUNT).await;
    carry_rides(&world, 400, &["c0"]).await;
    let mut client = world.connect().await;
    let tx = client.transaction().await.unwrap();
    pglog::hold_reaping(&tx).await.unwrap();
    let register = "INSERT INTO checkpoints (name, partition) SELECT 'new', p FROM generate_series(0, 7) AS p";
    tx.execute(register, &[]).await.unwrap();
    let config = reaper_config(&world);
    let reaping = tokio::spawn(async move { reaper::run_once(&config, &CancellationToken::new()).await });
    wait_until("the reaper waits for the registration", async || world.waiting_count().await == 1).await;
    tx.commit().await.unwrap();
    assert_eq!(reaping.await.unwrap().unwrap().record_count, 0);
    assert_eq!(staged(&world).await, 400);
}

fn reaper_config(world: &World) -> reaper::Config {
    let args = ["reaper", "--keep", "0s"].map(str::to_owned).into_iter().chain(world.flags("reaper"));
    clap::Parser::parse_from(args)
}

#[tokio::test]
async fn metrics_name_the_partition() {
    let world = World::cut(COUNT).await;
    fold(&world, "slow").await;
    carry_rides(&world, 400, &["fast"]).await;
    fold_in(&world, "slow", partitions().filter(|one| *one != partition(3))).await;
    let expected = staged_in(&world, 5).await as f64;
    let reaper = Watched::start(&world, "reaper", &["--keep", "0s", "--interval", "50ms", "--dead-after", "0s"]).await;
    let reaped = |number: i32| format!("rocket_rides_records_reaped_total{{partition=\"{number}\"}}");
    wait_until("partition 5 is reaped", async || reaper.metrics().await.get(&reaped(5)) == Some(&expected)).await;
    assert_eq!(reaper.metric(&reaped(3)).await, 0.0);
    let laggards = "rocket_rides_laggards{partition=\"3\"}";
    wait_until("the laggard is counted", async || reaper.metric(laggards).await == 1.0).await;
    assert_eq!(reaper.metric("rocket_rides_laggards{partition=\"4\"}").await, 0.0);
    reaper.assert_every_metric_has_help().await;
    reaper.process.stop().await;
}

#[tokio::test]
async fn a_node_that_is_away_holds_back_only_the_trimming_of_its_streams() {
    let mut cluster = TestCluster::start().await;
    let world = World::cut_on(&tests_database(), &cluster.url(), COUNT).await;
    carry_rides(&world, 4000, &["c0"]).await;
    let before = stream_lens(&world).await;
    let servers: stream::Servers = world.redis_url().parse().unwrap();
    let stream = stream_of(&world).await;
    let mut held = Vec::new();
    for one in partitions() {
        let node = servers.node_of(&stream.key(one)).await.unwrap().get_connection_info().addr().to_string();
        held.push(cluster.is_first(&node));
    }
    assert!(held.contains(&true) && held.contains(&false), "{held:?}");
    cluster.kill_first().await;
    let flags = ["--keep", "0s", "--interval", "100ms"];
    let mut reaper = Process::start(&world, "reaper", &flags);
    reaper.wait_for("these streams are not trimmed while their server is away").await;
    wait_until("all partitions are reaped", async || staged(&world).await == 0).await;
    cluster.start_first_again().await;
    let is_trimmed = async || stream_lens(&world).await.iter().all(|len| *len < 100);
    wait_until("all streams are trimmed", is_trimmed).await;
    assert!(before.iter().all(|len| *len > 300), "{before:?}");
    reaper.stop().await;
}

fn tests_database() -> String {
    std::env::var("DATABASE_URL").expect("bin/test sets it")
}

#[tokio::test]
async fn reaping_goes_on_while_rides_come_in() {
    let world = World::cut(COUNT).await;
    fold(&world, "c0").await;
    let reaper = Process::start(&world, "reaper", &["--keep", "0s", "--interval", "20ms"]);
    for _ in 0..5 {
        write_rides(&world, 200).await;
        publish(&world).await;
        fold(&world, "c0").await;
    }
    wait_until("everything is reaped", async || staged(&world).await == 0).await;
    assert_eq!(sum_of(&world, "c0").await, world.sql_totals().await, "P3");
    reaper.stop().await;
}
