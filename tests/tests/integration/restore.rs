//! A restored database: no record is lost or folded twice, and no process works on the log before it is adopted.

use crate::api::Api;
use nix::sys::signal::Signal;
use tests::{PrivatePostgres, PrivateRedis, Process, World, wait_until, write_rides};

/// The number of records that every consumer has folded.
async fn folded_count(world: &World) -> i64 {
    world.number("SELECT COALESCE(min(last_offset), 0) FROM checkpoints").await
}

/// Uses up transaction ids: each subtransaction that writes takes one id.
async fn burn_transactions(cluster: &PrivatePostgres, count: i32) {
    let client = connect::postgres::connect(&cluster.url().parse().unwrap(), "test", || {}).await.unwrap();
    let burn = format!(
        "CREATE TEMPORARY TABLE burnt (n INT);
         DO $$ BEGIN FOR n IN 1..{count} LOOP
             BEGIN INSERT INTO burnt VALUES (n); RAISE EXCEPTION 'undone'; EXCEPTION WHEN raise_exception THEN END;
         END LOOP; END $$"
    );
    client.batch_execute(&burn).await.unwrap();
}

/// Puts Postgres back to an older state and keeps the stream. Then `grown_count` further rides are written before a streamer
/// looks at the stream.
async fn postgres_is_put_back(grown_count: i64, found: &str) {
    let mut postgres = PrivatePostgres::start().await;
    let redis = PrivateRedis::start(&[]).await;
    let mut world = World::on(&postgres.url(), &redis.url()).await;
    world.forget_database();
    let fault = ["--fault-rate", "0.1"];
    let mut streamer = Process::start(&world, "streamer", &fault);
    // The consumers run during the whole test.
    let mut consumers = ["c0", "c1"].map(|name| Process::start(&world, "consumer", &[&[name][..], &fault].concat()));
    let write = async |world: &World, ride_count: i64| {
        for _ in 0..ride_count / 10 {
            world.write_rides(10).await;
        }
    };
    streamer.wait_until_publishing(1).await;
    write(&world, 300).await;
    wait_until("300 are folded", async || folded_count(&world).await == 300).await;
    let backup = postgres.stop_and_copy().await;
    postgres.start_again().await;
    let world = world.reconnected().await;
    streamer.wait_until_publishing(2).await;
    write(&world, 200).await;
    wait_until("500 are folded", async || folded_count(&world).await == 500).await;
    wait_until("500 are in the stream", async || world.stream_len().await >= 500).await;
    if grown_count > 0 {
        streamer.signal(Signal::SIGTERM);
        streamer.ended().await;
    }
    postgres.put_back(&backup).await;
    postgres.start_again().await;
    let world = world.reconnected().await;
    assert_eq!(world.sql_totals().await.0, 300, "200 rides are gone, and their records are in the stream");
    if grown_count > 0 {
        write(&world, grown_count).await;
        streamer = Process::start(&world, "streamer", &fault);
    }
    streamer.wait_for("set aside and built anew").await;
    assert!(streamer.output().contains(found), "{}", streamer.output());
    write(&world, 50).await;
    let all = world.sql_totals().await.0;
    wait_until("all is folded", async || folded_count(&world).await == all).await;
    world.drain_consumer(&mut world.consumer("new")).await;
    world.assert_converged(&["c0", "c1", "new"]).await;
    assert!(streamer.is_running() && consumers.iter_mut().all(Process::is_running), "every process still runs");
    // The stream holds this log again, up to the head.
    let mut redis = world.redis().await;
    wait_until("the stream ends at the head", async || {
        let last: Vec<(String, Vec<String>)> = redis::cmd("XREVRANGE")
            .arg(world.stream_name())
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(1)
            .query_async(&mut redis)
            .await
            .unwrap();
        last.first().is_some_and(|entry| entry.0.starts_with(&format!("{all}-")))
    })
    .await;
}

#[tokio::test]
async fn a_postgres_put_back_behind_the_stream_is_noticed_at_once() {
    postgres_is_put_back(0, "it ends beyond the head").await;
}

#[tokio::test]
async fn a_postgres_put_back_that_grew_exactly_to_the_streams_end_is_noticed() {
    postgres_is_put_back(200, "does not carry the token").await;
}

#[tokio::test]
async fn a_postgres_put_back_that_grew_past_the_streams_end_is_noticed() {
    postgres_is_put_back(400, "does not carry the token").await;
}

/// Dumps a log under traffic and restores it into a new cluster that has used `burnt_count` transaction ids.
async fn a_dump_goes_on_in_another_cluster(burnt_count: i32) {
    let (old_cluster, new_cluster) = (PrivatePostgres::start().await, PrivatePostgres::start().await);
    burn_transactions(&new_cluster, burnt_count).await;
    let redis = PrivateRedis::start(&[]).await;
    let mut world = World::on(&old_cluster.url(), &redis.url()).await;
    world.forget_database();
    let names = ["c0", "c1"];
    let start = |world: &World| {
        let fault = ["--fault-rate", "0.1"];
        let streamer = Process::start(world, "streamer", &fault);
        (streamer, names.map(|name| Process::start(world, "consumer", &[&[name][..], &fault].concat())))
    };
    let (streamer, consumers) = start(&world);
    let mut writers = Vec::new();
    for _ in 0..4 {
        let client = world.connect().await;
        writers.push(tokio::spawn(async move {
            for _ in 0..200 {
                write_rides(&client, 3).await;
            }
        }));
    }
    wait_until("consumers are on their way", async || folded_count(&world).await > 300).await;
    let dump = world.dump().await;
    for writer in writers {
        writer.await.unwrap();
    }
    // The old system runs on, so its stream is ahead of the dump when the new system starts.
    wait_until("all is folded", async || folded_count(&world).await == 2400).await;
    streamer.stop().await;
    for consumer in consumers {
        consumer.stop().await;
    }

    let restored = world.restored(&dump, &new_cluster).await;
    let api = Api::start(&restored).await;
    for _ in 0..20 {
        assert_eq!(api.post_form("distance=12.5").await.0, 201, "the api works before the log is adopted");
    }
    for (name, args) in [("streamer", &[][..]), ("consumer", &["c0"]), ("consumer", &["new"]), ("reaper", &[])] {
        let output = Process::start(&restored, name, args).fail(1).await;
        assert!(output.contains("`adopt"), "{name}: {output}");
    }
    Process::start(&restored, "adopt", &[]).succeed().await;
    let (mut streamer, mut consumers) = start(&restored);
    let mut new = Process::start(&restored, "consumer", &["new"]);
    for _ in 0..20 {
        assert_eq!(api.post_form("distance=12.5").await.0, 201);
    }
    let all = restored.sql_totals().await.0;
    wait_until("all is folded, from the first record on", async || {
        folded_count(&restored).await == all && restored.number("SELECT count(*) FROM checkpoints").await == 3
    })
    .await;
    restored.assert_converged(&["c0", "c1", "new"]).await;
    assert!(streamer.is_running() && new.is_running() && consumers.iter_mut().all(Process::is_running));
    new.signal(Signal::SIGTERM);
}

#[tokio::test]
async fn a_dump_restored_into_a_younger_cluster_is_refused_adopted_and_goes_on() {
    a_dump_goes_on_in_another_cluster(0).await;
}

#[tokio::test]
async fn a_dump_restored_into_an_older_cluster_is_refused_adopted_and_goes_on() {
    a_dump_goes_on_in_another_cluster(50_000).await;
}
