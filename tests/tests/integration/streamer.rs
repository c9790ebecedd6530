//! The streamer: leadership, double sends, errors of Redis.

use pglog::Record;
use stream::codec::{EntryId, EntryWriter, Fields};
use stream::resp::{Commands, Element, Elements};
use streamer::{Fault, Refused, Step};
use tests::{PrivateRedis, Process, World, wait_until};

#[tokio::test]
async fn a_batch_that_is_sent_again_is_refused_by_redis() {
    let world = World::new().await;
    world.write_rides(5).await;
    let Step::Published(published) = world.streamer().run_once(Fault::ResendBatch).await.unwrap() else {
        panic!("nothing was published");
    };
    assert_eq!((published.record_count, published.added_count, published.refused_count), (5, 5, 5));
    let length = world.stream_len().await;
    assert_eq!(length, 5);
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    world.assert_converged(&["consumer0"]).await;
}

#[tokio::test]
async fn one_streamer_leads_and_another_takes_over_when_it_dies() {
    let world = World::new().await;
    let mut leader = Process::start(&world, "streamer", &[]);
    leader.wait_for("leading").await;
    let mut standby = Process::start(&world, "streamer", &[]);
    standby.wait_for("standing by").await;
    world.write_rides(10).await;
    leader.wait_for("batch published").await;
    assert!(!standby.output().contains("batch published"));
    leader.kill().await;
    standby.wait_for("leading").await;
    world.write_rides(10).await;
    standby.wait_for("batch published").await;
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    world.assert_converged(&["consumer0"]).await;
    standby.stop().await;
}

/// The leader is silent and its connection stays open, as if its machine had lost power or a firewall dropped its packets.
#[tokio::test]
async fn a_leader_that_says_nothing_any_more_loses_the_lock() {
    let world = World::new().await;
    let mut leader = Process::start(&world, "streamer", &[]);
    leader.wait_for("leading").await;
    let mut standby = Process::start(&world, "streamer", &[]);
    standby.wait_for("standing by").await;
    leader.signal(nix::sys::signal::Signal::SIGSTOP);
    world.write_rides(10).await;
    standby.wait_for("batch published").await;
    leader.signal(nix::sys::signal::Signal::SIGCONT);
    leader.wait_for("standing by").await;
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    world.assert_converged(&["consumer0"]).await;
}

#[tokio::test]
async fn a_leader_that_lost_its_connection_leads_again_with_a_new_one() {
    let world = World::new().await;
    let mut streamer = world.streamer();
    world.write_rides(3).await;
    world.drain_streamer(&mut streamer).await;
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE application_name = 'streamer' AND datname = current_database()";
    assert_eq!(world.number(kill).await, 1);
    world.write_rides(3).await;
    wait_until("it leads again", async || streamer.run_once(Fault::None).await.is_ok()).await;
    world.drain_streamer(&mut streamer).await;
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    world.assert_converged(&["consumer0"]).await;
}

#[tokio::test]
async fn a_leader_that_slept_while_another_published_adds_nothing_twice() {
    let world = World::new().await;
    let mut asleep = world.streamer();
    world.write_rides(3).await;
    assert!(matches!(asleep.run_once(Fault::None).await.unwrap(), Step::Published(_)));
    // The sleeping streamer believes that the stream ends at 3. Meanwhile the test publishes 4 to 6.
    world.write_rides(3).await;
    let client = world.connect().await;
    let batch = pglog::assign(&client, pglog::Partition::FIRST, 42).await.unwrap().unwrap();
    let page = pglog::Reader::at_start_of(batch).next_page(&client, 10).await.unwrap();
    let (mut commands, mut writer) = (Commands::default(), EntryWriter::new(world.stream_name()));
    for Record { offset, token, object, action, data, staged_at_us, traceparent, .. } in page.records() {
        let fields = Fields { object, action, data, staged_at_us, token, traceparent };
        writer.add(&mut commands, EntryId { offset, copy: 0 }, &fields);
    }
    let mut wire = world.wire().await;
    wire.send(&commands).await.unwrap();
    let replies = wire.read(commands.count()).await.unwrap();
    assert!(Elements::of(&replies).all(|reply| matches!(reply, Element::Bulk(_))), "all are added");
    world.write_rides(1).await;
    let (added_count, refused_count) = world.drain_streamer(&mut asleep).await;
    assert_eq!(
        (added_count, refused_count),
        (1, 3),
        "entries of the other streamer are refused, and the new entry is added"
    );
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    world.assert_converged(&["consumer0"]).await;
}

#[tokio::test]
async fn a_key_of_another_type_stops_the_streamer_with_a_clear_error() {
    let world = World::new().await;
    let _: () =
        redis::cmd("SET").arg(world.stream_name()).arg("x").query_async(&mut world.redis().await).await.unwrap();
    world.write_rides(1).await;
    let error = world.streamer().run_once(Fault::None).await.err().unwrap();
    assert!(error.downcast_ref::<Refused>().is_some(), "{error:#}");
    let output = Process::start(&world, "streamer", &[]).fail(1).await;
    assert!(output.contains("redis refuses") && output.contains("WRONGTYPE"), "{output}");
}

#[tokio::test]
async fn while_redis_is_full_nothing_is_skipped() {
    let redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    let mut streamer = world.streamer();
    let mut admin = world.redis().await;
    world.write_rides(20).await;
    world.drain_streamer(&mut streamer).await;
    let limit = async |admin: &mut redis::aio::MultiplexedConnection, bytes: &str| {
        let _: () = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).query_async(admin).await.unwrap();
    };
    limit(&mut admin, "1").await;
    world.write_rides(20).await;
    for _ in 0..3 {
        let error = streamer.run_once(Fault::None).await.err().unwrap();
        assert!(error.downcast_ref::<Refused>().is_none(), "worth trying again: {error:#}");
    }
    limit(&mut admin, "0").await;
    let (added_count, _) = world.drain_streamer(&mut streamer).await;
    assert_eq!(added_count, 20);
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    world.assert_converged(&["consumer0"]).await;
}

#[tokio::test]
async fn drain_publishes_everything_and_exits() {
    let world = World::new().await;
    world.write_rides(2_345).await;
    let output = Process::start(&world, "streamer", &["--drain"]).succeed().await;
    assert!(output.contains("batch published"), "{output}");
    let length = world.stream_len().await;
    assert_eq!(length, 2_345);
    // Beside a leader, `--drain` waits until the leader has published everything.
    let mut leader = Process::start(&world, "streamer", &[]);
    leader.wait_for("leading").await;
    world.write_rides(10).await;
    Process::start(&world, "streamer", &["--drain"]).succeed().await;
    let length = world.stream_len().await;
    assert_eq!(length, 2_355);
}

#[tokio::test]
async fn partitions_have_offsets_and_streams_of_their_own() {
    let world = World::cut(8).await;
    let insert = "INSERT INTO staged_log_records (partition, object, action, data)
                  SELECT n % 2 * 7, 'ride', 'create', format('{\"id\":%s,\"distance_mm\":10}', n)::json
                  FROM generate_series(1, 5) AS n";
    world.client().batch_execute(insert).await.unwrap();
    for (partition, record_count) in [("0", 2), ("7", 3)] {
        // The flag has the name that it had when a streamer worked on one partition.
        Process::start(&world, "streamer", &["--drain", "--partition", partition]).succeed().await;
        let key = format!("SELECT stream_key({partition}, '{}')", world.stream_name());
        let key: String = world.client().query_one(&key, &[]).await.unwrap().get(0);
        let length: i64 = redis::cmd("XLEN").arg(&key).query_async(&mut world.redis().await).await.unwrap();
        assert_eq!(length, record_count);
        let head =
            format!("SELECT max(first_offset + record_count - 1) FROM log_batches WHERE partition = {partition}");
        assert_eq!(world.number(&head).await, record_count);
    }
}
