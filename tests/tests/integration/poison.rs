//! Foreign entries in the stream: they neither stop a consumer nor change a total.

use redis::aio::MultiplexedConnection;
use tests::{PrivateRedis, Process, World, wait_until};

/// Appends an entry with these fields and this id. Redis may refuse the id, which does no harm.
async fn poison(world: &World, id: &str, fields: &[&str]) {
    let mut redis: MultiplexedConnection = world.redis().await;
    let _: Result<String, _> =
        redis::cmd("XADD").arg(world.stream_name()).arg(id).arg(fields).query_async(&mut redis).await;
}

const WELL_FORMED: [&str; 4] = ["about", "5 1 4 ride create", "data", r#"{"id":1,"distance_mm":777}"#];

#[tokio::test]
async fn entries_under_the_next_offset_are_not_believed_whatever_they_say() {
    let bad_json = ["about", "5 1 4 ride create", "data", "{"];
    let negative = ["about", "5 1 4 ride create", "data", r#"{"id":1,"distance_mm":-7}"#];
    let old = ["object", "ride", "action", "create", "data", "{}", "staged_at_us", "1", "token", "5"];
    for fields in [&WELL_FORMED[..], &bad_json, &negative, &old, &["data", "x"], &["about", "\u{0}"]] {
        let world = World::new().await;
        let (mut streamer, mut consumer) = (world.streamer(), world.consumer("consumer0"));
        world.carry_rides(3, &mut streamer, &mut consumer).await;
        // An entry 4-0 makes Redis refuse the true record 4.
        poison(&world, "4-0", fields).await;
        let progress = world.drain_consumer(&mut consumer).await;
        assert_eq!((progress.applied_count, progress.rejected_count), (0, 1), "{fields:?}");
        world.carry_rides(3, &mut streamer, &mut consumer).await;
        world.drain_consumer(&mut world.consumer("fresh")).await;
        world.assert_converged(&["consumer0", "fresh"]).await;
        assert_eq!(world.number("SELECT count(*) FROM dead_letters").await, 0, "the true records are sound");
    }
}

#[tokio::test]
async fn a_token_vouches_for_the_records_of_its_batch_and_for_no_other() {
    let world = World::new().await;
    let (mut streamer, mut consumer) = (world.streamer(), world.consumer("consumer0"));
    world.carry_rides(3, &mut streamer, &mut consumer).await;
    let token = world.number("SELECT token FROM log_batches").await;
    let copied = format!("{token} 1 4 ride create");
    poison(&world, "4-0", &["about", &copied, "data", r#"{"id":1,"distance_mm":7}"#]).await;
    let progress = world.drain_consumer(&mut consumer).await;
    assert_eq!((progress.applied_count, progress.rejected_count), (0, 1));
    world.carry_rides(3, &mut streamer, &mut consumer).await;
    world.assert_converged(&["consumer0"]).await;
}

#[tokio::test]
async fn entries_far_ahead_are_set_aside_and_the_stream_is_built_anew() {
    let world = World::new().await;
    let mut streamer = Process::start(&world, "streamer", &[]);
    let mut consumers = [Process::start(&world, "consumer", &["c0"]), Process::start(&world, "consumer", &["c1"])];
    streamer.wait_for("leading").await;
    world.write_rides(5).await;
    wait_until("5 are folded", async || {
        world.number("SELECT COALESCE(min(last_offset), 0) FROM checkpoints").await == 5
    })
    .await;
    // A client that does not know the protocol lets Redis make an id from the clock.
    for _ in 0..3 {
        poison(&world, "*", &WELL_FORMED).await;
    }
    world.write_rides(5).await;
    streamer.wait_for("set aside").await;
    let all_folded = "SELECT count(*) FROM checkpoints WHERE last_offset = 10";
    wait_until("10 are folded by both", async || world.number(all_folded).await == 2).await;
    poison(&world, "18446744073709551615-18446744073709551615", &WELL_FORMED).await;
    world.write_rides(5).await;
    let all_folded = "SELECT count(*) FROM checkpoints WHERE last_offset = 15";
    wait_until("15 are folded by both", async || world.number(all_folded).await == 2).await;
    world.assert_converged(&["c0", "c1"]).await;
    let mut redis = world.redis().await;
    let kept: i64 = redis::cmd("XLEN")
        .arg(format!("{{{}}}:set-aside:1", world.stream_name()))
        .query_async(&mut redis)
        .await
        .unwrap();
    assert!(kept >= 1, "the foreign entries are kept under another key");
    assert!(consumers.iter_mut().all(Process::is_running) && streamer.is_running(), "every process still runs");
    // The stream works again: new entries arrive through it.
    wait_until("the stream ends at the head", async || {
        let entries: Vec<(String, Vec<String>)> = redis::cmd("XREVRANGE")
            .arg(world.stream_name())
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(1)
            .query_async(&mut redis)
            .await
            .unwrap();
        entries.first().is_none_or(|entry| entry.0.starts_with("15-"))
    })
    .await;
}

#[tokio::test]
async fn a_key_of_another_type_does_not_stop_consumers() {
    let world = World::new().await;
    let mut redis = world.redis().await;
    let _: () = redis::cmd("SET").arg(world.stream_name()).arg("x").query_async(&mut redis).await.unwrap();
    world.write_rides(3).await;
    pglog::assign(world.client(), pglog::Partition::FIRST, 1).await.unwrap();
    let progress = world.consumer("consumer0").run_once(consumer::Fault::None, None).await.unwrap();
    assert_eq!(progress.healed_count, 3, "read from Postgres");
    world.assert_converged(&["consumer0"]).await;
}

#[tokio::test]
async fn streams_are_set_aside_one_beside_the_other_in_a_cluster_too() {
    let cluster_port = tests::free_port().to_string();
    let cluster =
        PrivateRedis::start(&["--cluster-enabled", "yes", "--cluster-port", &cluster_port, "--bind", "127.0.0.1"])
            .await;
    let mut admin = World::with_redis(&cluster.url()).await.redis().await;
    redis::cmd("CLUSTER").arg(&["ADDSLOTSRANGE", "0", "16383"]).exec_async(&mut admin).await.unwrap();
    wait_until("the cluster serves all slots", async || {
        let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut admin.clone()).await.unwrap();
        info.contains("cluster_state:ok")
    })
    .await;
    let plain = PrivateRedis::start(&[]).await;
    for url in [plain.url(), cluster.url()] {
        let world = World::with_redis(&url).await;
        let key = |number| format!("{{{}}}:set-aside:{number}", world.stream_name());
        let mut redis = world.redis().await;
        for number in 1..=10 {
            world.write_rides(1).await;
            world.drain_streamer(&mut world.streamer()).await;
            poison(&world, &format!("{}-0", 100 + number), &WELL_FORMED).await;
        }
        world.write_rides(1).await;
        world.drain_streamer(&mut world.streamer()).await;
        for number in 1..=10 {
            let last: Vec<(String, Vec<String>)> = redis::cmd("XREVRANGE")
                .arg(key(number))
                .arg(&["+", "-", "COUNT", "1"])
                .query_async(&mut redis)
                .await
                .unwrap();
            assert_eq!(last[0].0, format!("{}-0", 100 + number), "no stream replaced an earlier one");
        }
        // Their number has a limit. Consumers do not need the stream.
        poison(&world, "200-0", &WELL_FORMED).await;
        world.write_rides(1).await;
        let error = world.step(&mut world.streamer()).await.unwrap_err();
        assert!(format!("{error:#}").contains("10 streams have been set aside"), "{error:#}");
        world.drain_consumer(&mut world.consumer("c0")).await;
        world.assert_converged(&["c0"]).await;
        redis::cmd("DEL").arg(key(4)).exec_async(&mut redis).await.unwrap();
        world.drain_streamer(&mut world.streamer()).await;
    }
}
