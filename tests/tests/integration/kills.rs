//! Every process is killed and stopped in the middle of its work (I7).

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use consumer::Fault;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::{PrivatePostgres, PrivateRedis, Process, World, wait_until, write_rides};
use tokio::process::Command;

#[tokio::test]
async fn a_streamer_killed_again_and_again_publishes_everything_once() {
    let world = World::new().await;
    for round in 0..12 {
        world.write_rides(700).await;
        let mut streamer = Process::start(&world, "streamer", &["--fault-rate", "0.3"]);
        if round % 3 == 0 {
            streamer.wait_for("leading").await;
        } else {
            streamer.wait_for("batch published").await;
        }
        streamer.kill().await;
    }
    Process::start(&world, "streamer", &["--drain"]).succeed().await;
    let progress = world.drain_consumer(&mut world.consumer("consumer0")).await;
    assert_eq!((progress.applied_count, progress.healed_count), (8_400, 0), "the stream has every record");
    world.assert_converged(&["consumer0"]).await;
}

#[tokio::test]
async fn a_consumer_killed_again_and_again_counts_everything_once() {
    let world = World::new().await;
    world.write_rides(20_000).await;
    Process::start(&world, "streamer", &["--drain"]).succeed().await;
    for _ in 0..10 {
        let mut consumer = Process::start(&world, "consumer", &["consumer0", "--fault-rate", "0.3"]);
        consumer.wait_for("consumer started").await;
        let before = world.number("SELECT COALESCE(max(last_offset), 0) FROM checkpoints").await;
        wait_until("the consumer has committed a batch, or is at the head", async || {
            let now = world.number("SELECT COALESCE(max(last_offset), 0) FROM checkpoints").await;
            now > before || now == 20_000
        })
        .await;
        consumer.kill().await;
    }
    Process::start(&world, "consumer", &["consumer0", "--drain"]).succeed().await;
    world.assert_converged(&["consumer0"]).await;
}

/// A consumer's COMMIT does not wait for the disk. Here no other process writes it to the disk either, and Postgres is killed.
#[tokio::test]
async fn what_postgres_forgets_of_a_consumer_is_state_and_checkpoint_together() {
    let mut postgres = PrivatePostgres::start_with(&["autovacuum=off", "bgwriter_lru_maxpages=0"]).await;
    let redis = PrivateRedis::start(&[]).await;
    let world = World::on(&postgres.url(), &redis.url()).await;
    world.write_rides(2500).await;
    world.drain_streamer(&mut world.streamer()).await;
    let mut consumer = world.consumer("consumer0");
    consumer.run_once(Fault::None, None).await.unwrap();
    let wal_writer = world.number("SELECT pid::bigint FROM pg_stat_activity WHERE backend_type = 'walwriter'").await;
    let wal_writer = Pid::from_raw(wal_writer as i32);
    kill(wal_writer, Signal::SIGSTOP).unwrap();
    // A commit that waits for the disk also writes all earlier commits.
    world.write_rides(1).await;
    let progress = world.drain_consumer(&mut consumer).await;
    assert_eq!(progress.applied_count, 1500);
    assert_eq!(world.committed("consumer0").await.0, 2500, "a commit is visible before it is on the disk");
    postgres.kill().await;
    postgres.start_again().await;
    let world = world.reconnected().await;
    let (last_offset, fold) = world.committed("consumer0").await;
    assert_eq!(
        (last_offset, fold.ride_count),
        (1000, 1000),
        "state and checkpoint are back at the last commit on the disk"
    );
    world.drain_streamer(&mut world.streamer()).await;
    // The old process does not know about the loss yet. It goes on, and so does a new process.
    consumer.run_once(Fault::None, None).await.unwrap_err();
    assert_eq!(world.drain_consumer(&mut consumer).await.applied_count, 1501);
    world.drain_consumer(&mut world.consumer("consumer1")).await;
    world.assert_converged(&["consumer0", "consumer1"]).await;
}

/// In production these moments last microseconds. Here the process kills itself in each of them.
#[tokio::test]
async fn a_process_killed_at_any_named_point_goes_on_where_it_was() {
    let world = World::new().await;
    for (round, fault) in ["die-after-assign", "die-mid-pipeline", "die-after-publish"].into_iter().enumerate() {
        world.write_rides(1500).await;
        let killed = Process::start(&world, "streamer", &["--inject", &format!("{fault}:1")]).ended().await;
        assert_eq!(killed.signal(), Some(9), "{fault}");
        let head = world.number("SELECT max(first_offset + record_count - 1) FROM log_batches").await;
        assert_eq!(head, 1500 * (round as i64 + 1), "the order was fixed before {fault}");
        let entries = world.stream_len().await;
        let published = [0, 1500 + 500, 3000 + 1000][round];
        assert_eq!(entries, published, "{fault}");
        Process::start(&world, "streamer", &["--drain"]).succeed().await;
    }
    for (fault, last_offset) in [("die-before-commit", 2000), ("die-at-commit", 2000), ("die-after-commit", 3000)] {
        let name = fault;
        // In the third batch, because the first batches prepare their statements.
        let killed = Process::start(&world, "consumer", &[name, "--inject", &format!("{fault}:3")]).ended().await;
        assert_eq!(killed.signal(), Some(9), "{fault}");
        let checkpoint = world.number(&format!("SELECT last_offset FROM checkpoints WHERE name = '{name}'")).await;
        // A commit that was sent may arrive or not.
        assert!(checkpoint == last_offset || fault == "die-at-commit" && checkpoint == 3000, "{fault}: {checkpoint}");
        Process::start(&world, "consumer", &[name, "--drain"]).succeed().await;
    }
    world.assert_converged(&["die-before-commit", "die-at-commit", "die-after-commit"]).await;
}

#[tokio::test]
async fn two_streamers_that_both_believe_they_lead_harm_nothing() {
    let world = World::new().await;
    let mut streamers =
        [0, 1].map(|_| Process::start(&world, "streamer", &["--lead-without-lock", "--fault-rate", "0.2"]));
    for _ in 0..40 {
        world.write_rides(50).await;
    }
    let mut consumer = world.consumer("consumer0");
    wait_until("everything is folded", async || {
        world.drain_consumer(&mut consumer).await;
        world.committed("consumer0").await.0 == 2000
    })
    .await;
    assert!(streamers.iter_mut().all(Process::is_running), "both streamers still run");
    world.assert_converged(&["consumer0"]).await;
}

#[tokio::test]
async fn an_api_killed_under_load_keeps_every_ride_it_confirmed() {
    let world = World::new().await;
    let mut confirmed_count = 0;
    for _ in 0..4 {
        let mut api = Process::start(&world, "api", &["--api-port", "0"]);
        api.wait_for("api started").await;
        let output = api.output();
        let address = output.split("address=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
        let clients: Vec<_> =
            (0..16).map(|_| tokio::spawn(post_until_refused(format!("http://{address}/rides")))).collect();
        let before = world.sql_totals().await.0;
        wait_until("rides were written", async || world.sql_totals().await.0 > before + 200).await;
        api.kill().await;
        for client in clients {
            confirmed_count += client.await.unwrap();
        }
    }
    // One statement counts both, because the last transaction of a killed api may commit between two statements.
    let counts = "SELECT (SELECT count(*) FROM rides), (SELECT count(*) FROM staged_log_records)";
    let row = world.client().query_one(counts, &[]).await.unwrap();
    let (ride_count, record_count): (i64, i64) = (row.get(0), row.get(1));
    assert!(ride_count >= confirmed_count, "{confirmed_count} rides were confirmed, and only {ride_count} are there");
    assert_eq!(record_count, ride_count, "each ride has its record");
    let theirs =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'api'";
    wait_until("the last transaction of the api has ended", async || world.number(theirs).await == 0).await;
    world.drain_streamer(&mut world.streamer()).await;
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    world.assert_converged(&["consumer0"]).await;
}

/// Posts rides until the api is gone. Returns the number of confirmed rides.
async fn post_until_refused(url: String) -> i64 {
    let client = reqwest::Client::new();
    let mut confirmed_count = 0;
    loop {
        let request = client.post(&url).header("content-type", "application/json").body(r#"{"distance":12.5}"#);
        match request.send().await {
            Ok(response) => confirmed_count += i64::from(response.status() == 201),
            Err(_) => return confirmed_count,
        }
    }
}

#[tokio::test]
async fn every_process_stops_on_either_signal_with_status_0() {
    let world = World::new().await;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut processes = Vec::new();
        for (name, args, words) in [
            ("api", &["--api-port", "0"][..], "api started"),
            ("streamer", &[], "leading"),
            ("streamer", &[], "standing by"),
            ("consumer", &["consumer0"], "consumer started"),
            ("reaper", &[], "reaper started"),
            ("simulator", &["--api-port", "1"], "simulator started"),
        ] {
            let mut process = Process::start(&world, name, args);
            process.wait_for(words).await;
            processes.push(process);
        }
        world.write_rides(100).await;
        for mut process in processes {
            process.signal(signal);
            let status = process.ended().await;
            assert!(status.success(), "{status} after {signal}:\n{}", process.output());
        }
    }
    world.drain_streamer(&mut world.streamer()).await;
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    world.assert_converged(&["consumer0"]).await;
}

/// The reader of the log, for example the launcher, was killed. Writing to the closed pipe fails, which must not end the
/// process.
#[tokio::test]
async fn a_process_whose_log_nobody_reads_works_on_and_stops_when_it_is_told() {
    let world = World::new().await;
    let mut command = Command::new(tests::binary("streamer"));
    command.args(world.flags("streamer")).stderr(Stdio::piped()).kill_on_drop(true);
    let mut streamer = command.spawn().unwrap();
    drop(streamer.stderr.take());
    world.write_rides(5).await;
    wait_until("it publishes", async || world.stream_len().await == 5).await;
    kill(Pid::from_raw(streamer.id().unwrap() as i32), Signal::SIGTERM).unwrap();
    let status = tokio::time::timeout(tests::PATIENCE, streamer.wait()).await.expect("it ends").unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_postgres_killed_under_load_is_waited_for_and_nothing_is_lost() {
    let mut postgres = PrivatePostgres::start().await;
    let redis = PrivateRedis::start(&[]).await;
    let mut world = World::on(&postgres.url(), &redis.url()).await;
    world.forget_database();
    let mut streamer = Process::start(&world, "streamer", &["--fault-rate", "0.1"]);
    let mut consumers = ["c0", "c1"].map(|name| Process::start(&world, "consumer", &[name, "--fault-rate", "0.1"]));
    streamer.wait_for("leading").await;
    for _ in 0..3 {
        let reader = world.connect().await;
        let last = "SELECT count(*) FROM rides";
        let before: i64 = reader.query_one(last, &[]).await.unwrap().get(0);
        let client = world.connect().await;
        let writer = tokio::spawn(async move {
            for _ in 0..30 {
                write_rides(&client, 10).await;
            }
            // This statement runs until the server dies.
            client.batch_execute("SELECT pg_sleep(60)").await.unwrap_err();
        });
        wait_until("rides were written", async || {
            reader.query_one(last, &[]).await.unwrap().get::<_, i64>(0) >= before + 200
        })
        .await;
        postgres.kill().await;
        // The writer may have been interrupted. Every ride that Postgres confirmed must be there.
        let _ = writer.await;
        postgres.start_again().await;
    }
    let world = world.reconnected().await;
    let lowest = "SELECT COALESCE(min(last_offset), 0) - (SELECT count(*) FROM rides) FROM checkpoints";
    wait_until("both consumers have everything", async || world.number(lowest).await == 0).await;
    world.assert_converged(&["c0", "c1"]).await;
    assert!(streamer.is_running() && consumers.iter_mut().all(Process::is_running), "every process still runs");
}
