//! Consumers of a log that is cut into partitions: each has SQL's sum over all of them (P3), by as few commits as can be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use consumer::{Consumer, DistanceFold, Fault, Interruption, Progress, State};
use nix::sys::signal::Signal;
use pglog::{Partition, Session};
use stream::codec::{EntryId, EntryWriter, Fields};
use stream::resp::Commands;
use tests::{PrivateCluster, PrivateRedis, Process, World, start_streamer, unpublished, wait_until};
use tokio::task::JoinSet;

const NAMES: [&str; 3] = ["consumer0", "consumer1", "consumer2"];

fn partition(number: i32) -> Partition {
    Partition::new(number).unwrap()
}

/// Three clients write rides side by side, in transactions of different length.
async fn write_side_by_side(world: &World, ride_count: i64) {
    let mut writers = JoinSet::new();
    for _ in 0..3 {
        let client = world.connect().await;
        writers.spawn(async move {
            for number in 0..ride_count / 30 {
                tests::write_rides(&client, 1 + number % 19).await;
            }
        });
    }
    writers.join_all().await;
}

/// A consumer at the head of all partitions, which the test drives.
async fn at_head(world: &World) -> Consumer<State<DistanceFold>> {
    world.write_rides(100).await;
    world.publish(&world.partitions().await).await;
    let mut consumer = world.consumer("consumer0");
    world.drain_consumer(&mut consumer).await;
    assert!(world.has_folded_all("consumer0").await);
    consumer
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_of_eight_partitions_converge_on_sqls_sum_under_double_sends_and_crashes() {
    let world = World::cut(8).await;
    let faults = ["--fault-rate", "0.1"];
    let streamers = start_streamer(&world, &world.partitions().await, &faults);
    let mut consumers: Vec<Process> =
        NAMES.iter().map(|name| Process::start(&world, "consumer", &[&[*name], &faults[..]].concat())).collect();
    write_side_by_side(&world, 3000).await;
    // One dies, and goes on.
    consumers[2].signal(Signal::SIGKILL);
    consumers[2].ended().await;
    write_side_by_side(&world, 3000).await;
    consumers[2] = Process::start(&world, "consumer", &[&["consumer2"], &faults[..]].concat());
    world.converge(&NAMES).await;
    let counts = "SELECT (least(sum(duplicate_count), sum(crash_count)) > 0)::int::bigint FROM checkpoints";
    wait_until("faults were injected and counted", async || {
        world.write_rides(10).await;
        world.number(counts).await == 1
    })
    .await;
    world.converge(&NAMES).await;
    let used = "SELECT count(DISTINCT partition) FROM checkpoints WHERE last_offset > 0";
    assert_eq!(world.number(used).await, 8, "the rides are in all partitions");
    for consumer in consumers {
        consumer.stop().await;
    }
    streamers.stop().await;
}

#[tokio::test]
async fn two_processes_of_one_name_share_the_partitions_between_them() {
    let world = World::cut(8).await;
    let streamers = start_streamer(&world, &world.partitions().await, &[]);
    let halves = ["0,2,4,6", "7,5,3,1"];
    let halves = halves.map(|half| Process::start(&world, "consumer", &["consumer0", "--partitions", half]));
    write_side_by_side(&world, 1500).await;
    world.converge(&["consumer0"]).await;
    for half in halves {
        assert!(!half.output().contains("another process changed"), "neither disturbs the other: {}", half.output());
        half.stop().await;
    }
    streamers.stop().await;
}

/// Each row of `checkpoints` bears the transaction that has written it.
#[tokio::test]
async fn pages_of_all_partitions_are_committed_by_one_statement() {
    let world = World::cut(8).await;
    let mut consumer = at_head(&world).await;
    world.write_rides(100).await;
    world.publish(&world.partitions().await).await;
    let progress = consumer.run_once(Fault::None, None).await.unwrap();
    assert_eq!((progress.applied_count, progress.healed_count), (100, 0));
    assert_eq!(world.number("SELECT count(DISTINCT xmin::text) FROM checkpoints").await, 1, "one transaction");
    world.converge(&["consumer0"]).await;
    // A crash takes all of it back, and is counted once.
    world.write_rides(100).await;
    world.publish(&world.partitions().await).await;
    consumer.run_once(Fault::CrashBeforeCommit, None).await.unwrap_err();
    assert!(!world.has_folded_all("consumer0").await);
    assert_eq!(consumer.run_once(Fault::None, None).await.unwrap().applied_count, 100);
    assert_eq!(world.number("SELECT sum(crash_count)::bigint FROM checkpoints").await, 1);
    world.converge(&["consumer0"]).await;
}

#[tokio::test]
async fn a_conflict_in_one_partition_leaves_the_others_moved() {
    let world = World::cut(8).await;
    let mut consumer = at_head(&world).await;
    world.write_rides(100).await;
    world.publish(&world.partitions().await).await;
    // As the replay of a dead letter does.
    let raise = "UPDATE checkpoints SET generation = generation + 1 WHERE partition = 3";
    world.client().batch_execute(raise).await.unwrap();
    let before = world.checkpoints("consumer0").await;
    let error = consumer.run_once(Fault::None, None).await.unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Interruption::Fenced)), "{error:#}");
    let after = world.checkpoints("consumer0").await;
    for (at, offset) in &after {
        assert_eq!(*offset > before[at], *at != partition(3), "partition {at}: from {} to {offset}", before[at]);
    }
    world.drain_consumer(&mut consumer).await;
    world.converge(&["consumer0"]).await;
}

/// Another program has written an entry with the id of the next record.
#[tokio::test]
async fn an_entry_that_is_not_of_this_log_holds_back_no_other_partition() {
    let world = World::cut(8).await;
    let mut consumer = at_head(&world).await;
    let before = world.checkpoints("consumer0").await;
    world.write_rides(100).await;
    let others: Vec<Partition> = world.partitions().await.into_iter().filter(|at| *at != partition(3)).collect();
    world.publish(&others).await;
    unpublished(&world, partition(3)).await;
    let (key, mut commands) = (world.stream_key(partition(3)).await, Commands::default());
    let id = EntryId { offset: before[&partition(3)] + 1, copy: 0 };
    let data = r#"{"id":1,"distance_mm":1}"#;
    let fields = Fields { object: "ride", action: "create", data, staged_at_us: 0, token: 1, traceparent: None };
    EntryWriter::new(&key).add(&mut commands, id, &fields);
    let mut wire = world.wire().await;
    wire.send(&commands).await.unwrap();
    wire.read(1).await.unwrap();
    let progress = consumer.run_once(Fault::None, None).await.unwrap();
    assert_eq!((progress.applied_count, progress.rejected_count), (100, 1), "{progress:?}");
    assert!(progress.healed_count > 0, "the true records were read from Postgres");
    world.converge(&["consumer0"]).await;
}

/// The streams of the others are never silent, so a consumer that asks Postgres only then would never learn of these records.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_whose_stream_is_lost_is_read_from_postgres_while_the_others_are_busy() {
    let world = World::cut(8).await;
    let all = world.partitions().await;
    let (lost, others): (Vec<_>, Vec<_>) = all.iter().partition(|at| **at == partition(5));
    let streamers = start_streamer(&world, &others, &[]);
    let consumer = Process::start(&world, "consumer", &["consumer0"]);
    let client = world.connect().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let noticed = Arc::clone(&is_over);
    let writing = tokio::spawn(async move {
        while !noticed.load(Ordering::Relaxed) {
            tests::write_rides(&client, 20).await;
        }
    });
    let folded = async |at: i32| world.checkpoints("consumer0").await.get(&partition(at)).copied().unwrap_or(0);
    for _ in 0..3 {
        let others_before = folded(0).await;
        unpublished(&world, lost[0]).await;
        let head = pglog::head(world.client(), lost[0]).await.unwrap();
        wait_until("the lost partition is folded", async || folded(5).await >= head).await;
        wait_until("the others go on", async || folded(0).await > others_before).await;
    }
    // Not aborted: what it has sent would be committed later.
    is_over.store(true, Ordering::Relaxed);
    writing.await.unwrap();
    let healed = "SELECT healed_count FROM checkpoints WHERE partition = 5";
    assert!(world.number(healed).await > 0);
    unpublished(&world, lost[0]).await;
    world.converge(&["consumer0"]).await;
    consumer.stop().await;
    streamers.stop().await;
}

#[tokio::test]
async fn a_drain_ends_when_all_partitions_are_at_their_heads() {
    let world = World::cut(8).await;
    world.write_rides(200).await;
    let (published, lost) = world.partitions().await.into_iter().partition::<Vec<_>, _>(|at| *at < partition(6));
    world.publish(&published).await;
    for at in lost {
        unpublished(&world, at).await;
    }
    let output = Process::start(&world, "consumer", &["consumer0", "--drain"]).succeed().await;
    assert!(world.has_folded_all("consumer0").await, "{output}");
    assert!(output.contains("partition=7"), "a log line tells the partition: {output}");
    world.converge(&["consumer0"]).await;
}

#[tokio::test]
async fn without_redis_all_partitions_are_read_from_postgres() {
    let mut redis = PrivateRedis::start(&[]).await;
    let mut world = World::with_redis_cut(&redis.url(), 4).await;
    let consumer = Process::start(&world, "consumer", &["consumer0"]);
    wait_until("it is registered", async || world.checkpoints("consumer0").await.len() == 4).await;
    redis.kill().await;
    for _ in 0..3 {
        world.write_rides(50).await;
        for at in world.partitions().await {
            unpublished(&world, at).await;
        }
        world.converge(&["consumer0"]).await;
    }
    redis.start_again().await;
    world = world.reconnected().await;
    world.write_rides(50).await;
    world.publish(&world.partitions().await).await;
    world.converge(&["consumer0"]).await;
    consumer.stop().await;
}

#[tokio::test]
async fn in_a_cluster_each_stream_is_read_over_a_connection_of_its_own() {
    let cluster = PrivateCluster::start_masters().await;
    let world = World::with_redis_cut(&cluster.url(), 8).await;
    let mut consumer = world.consumer("consumer0");
    world.drain_consumer(&mut consumer).await;
    let mut healed_count = 0;
    for _ in 0..3 {
        world.write_rides(200).await;
        world.publish(&world.partitions().await).await;
        healed_count += world.drain_consumer(&mut consumer).await.healed_count;
        world.converge(&["consumer0"]).await;
    }
    assert_eq!(healed_count, 0, "everything came over the streams");
    let block = Some(std::time::Duration::from_secs(1));
    world.write_rides(8).await;
    world.publish(&world.partitions().await).await;
    let mut applied_count = 0;
    while applied_count < 8 {
        applied_count += consumer.run_once(Fault::None, block).await.unwrap().applied_count;
    }
    world.converge(&["consumer0"]).await;
}

/// One node has all slots, and the consumer was given this node alone.
#[tokio::test]
async fn a_node_of_a_cluster_is_recognized() {
    let redis = PrivateRedis::start(&["--cluster-enabled", "yes"]).await;
    let world = World::with_redis_cut(&redis.url(), 8).await;
    let mut connection = world.redis().await;
    redis::cmd("CLUSTER").arg(&["ADDSLOTSRANGE", "0", "16383"]).exec_async(&mut connection).await.unwrap();
    wait_until("the cluster takes writes", async || {
        let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut connection.clone()).await.unwrap();
        info.contains("cluster_state:ok")
    })
    .await;
    world.write_rides(200).await;
    world.publish(&world.partitions().await).await;
    let mut consumer = world.consumer("consumer0");
    let progress = world.drain_consumer(&mut consumer).await;
    assert_eq!(Progress { applied_count: 200, ..Progress::default() }, progress, "all came over the streams");
    world.converge(&["consumer0"]).await;
}

/// The steps of each key are numbered, and its writers take turns.
#[tokio::test(flavor = "multi_thread")]
async fn a_keys_records_are_in_one_partition_in_the_order_of_their_commits() {
    let world = World::cut(8).await;
    let streamers = start_streamer(&world, &world.partitions().await, &[]);
    let history = Process::start(&world, "consumer", &["history", "--fold", "history"]);
    let mut writers = JoinSet::new();
    for key in 0..20_i64 {
        let clients = [world.connect().await, world.connect().await];
        writers.spawn(async move {
            for step in 0..30_i64 {
                let stage = "INSERT INTO staged_log_records (partition, object, action, data)
                             SELECT partition_of('k' || $1), 'step', 'take', json_build_object('key', $1, 'step', $2::bigint)";
                Session::execute(&clients[step as usize % 2], stage, &[&key.to_string(), &step]).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    wait_until("all are archived", async || world.has_folded_all("history").await).await;
    let out_of_order = "SELECT count(*) FROM (
            SELECT partition, (data->>'step')::bigint AS step, data->>'key' AS key,
                   row_number() OVER (PARTITION BY partition, data->>'key' ORDER BY record_offset) - 1 AS place
            FROM history) AS taken
        WHERE step <> place OR partition <> partition_of('k' || key)";
    assert_eq!(world.number(out_of_order).await, 0);
    assert_eq!(world.number("SELECT count(*) FROM history").await, 600);
    history.stop().await;
    streamers.stop().await;
}
