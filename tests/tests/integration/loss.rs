//! Redis loses entries while the pipeline works (I6).

use std::time::Duration;

use tests::{PrivateRedis, Process, World, wait_long_until, wait_until, write_rides};

#[tokio::test]
async fn flushall_in_the_middle_of_traffic_loses_nothing() {
    let redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    let fault = ["--fault-rate", "0.1"];
    let streamer = Process::start(&world, "streamer", &fault);
    let names = ["c0", "c1", "c2"];
    let consumers = names.map(|name| Process::start(&world, "consumer", &[&[name][..], &fault].concat()));
    let client = world.connect().await;
    let mut admin = world.redis().await;
    for round in 0..150 {
        write_rides(&client, 20).await;
        if round % 25 == 24 {
            let _: () = redis::cmd("FLUSHALL").query_async(&mut admin).await.unwrap();
        }
        if round % 40 == 39 {
            let _: i64 = redis::cmd("XTRIM")
                .arg(world.stream_name())
                .arg("MAXLEN")
                .arg(0)
                .query_async(&mut admin)
                .await
                .unwrap();
        }
    }
    let folded = "SELECT count(*) FROM checkpoints WHERE last_offset = 3000";
    wait_until("all three have folded all of it", async || world.number(folded).await == 3).await;
    world.assert_converged(&names).await;
    for process in consumers {
        process.stop().await;
    }
    streamer.stop().await;
}

#[tokio::test]
async fn a_redis_put_back_to_an_older_state_loses_nothing() {
    let mut redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    let (mut streamer, mut consumer) = (world.streamer(), world.consumer("consumer0"));
    world.write_rides(100).await;
    world.drain_streamer(&mut streamer).await;
    let mut admin = world.redis().await;
    let old: Vec<u8> = redis::cmd("DUMP").arg(world.stream_name()).query_async(&mut admin).await.unwrap();
    world.carry_rides(100, &mut streamer, &mut consumer).await;
    let _: () = redis::cmd("RESTORE")
        .arg(world.stream_name())
        .arg(0)
        .arg(&old)
        .arg("REPLACE")
        .query_async(&mut admin)
        .await
        .unwrap();
    // Redis is also killed, so that streamer and consumer lose their connections.
    redis.kill().await;
    redis.start_again().await;
    world.write_rides(100).await;
    wait_until("the streamer is connected again", async || streamer.run_once(streamer::Fault::None).await.is_ok())
        .await;
    world.drain_streamer(&mut streamer).await;
    world.drain_consumer(&mut world.consumer("late")).await;
    wait_until("the consumer is connected again", async || {
        consumer.run_once(consumer::Fault::None, None).await.is_ok_and(|p| p == consumer::Progress::default())
    })
    .await;
    world.assert_converged(&["consumer0", "late"]).await;
}

#[tokio::test]
async fn a_consumer_that_starts_after_a_million_offsets_were_trimmed_is_exact() {
    let redis = PrivateRedis::start(&["--appendonly", "no"]).await;
    let world = World::with_redis(&redis.url()).await;
    world.client().batch_execute("SET statement_timeout = 0").await.unwrap();
    world.write_rides(1_000_000).await;
    let patience = Duration::from_secs(300);
    Process::start(&world, "streamer", &["--drain"]).succeed_within(patience).await;
    let mut admin = world.redis().await;
    let trimmed: i64 =
        redis::cmd("XTRIM").arg(world.stream_name()).arg("MAXLEN").arg(0).query_async(&mut admin).await.unwrap();
    assert_eq!(trimmed, 1_000_000);
    let streamer = Process::start(&world, "streamer", &[]);
    let consumer = Process::start(&world, "consumer", &["late"]);
    world.write_rides(100).await;
    let there = "SELECT COALESCE(max(last_offset), 0) FROM checkpoints";
    wait_long_until(patience, "the late consumer is at the head", async || world.number(there).await == 1_000_100)
        .await;
    world.assert_converged(&["late"]).await;
    consumer.stop().await;
    streamer.stop().await;
}
