//! The audit reports nothing while everything is equal, also under load. It names each difference precisely.

use tests::{PrivateRedis, Process, World, falsify, wait_until};

use crate::api::Api;
use crate::bootstrap::{Traffic, converge, more_rides};
use crate::dead_letters::with_rejected;
use crate::reaper::reap;

/// Runs `audit`, which must find no difference.
async fn equal(world: &World) -> String {
    Process::start(world, "audit", &[]).succeed().await
}

/// Runs `audit`, which must find differences and print a line that begins with each of `lines`.
async fn different(world: &World, lines: &[&str]) {
    let output = Process::start(world, "audit", &[]).fail(1).await;
    for line in lines {
        assert!(output.lines().any(|printed| printed.starts_with(line)), "no line {line:?} in\n{output}");
    }
}

/// A world with thirty rides, ten of them reaped, and two consumers, of which c1 is not at the head. Two further rides have no
/// offset yet.
async fn sound_world() -> World {
    let world = World::new().await;
    let (mut streamer, mut first, mut second) = (world.streamer(), world.consumer("c0"), world.consumer("c1"));
    for round in 0..3 {
        world.carry_rides(10, &mut streamer, &mut first).await;
        if round == 0 {
            world.drain_consumer(&mut second).await;
            reap(&world, &["--keep", "0s"]).await;
        }
    }
    world.write_rides(2).await;
    equal(&world).await;
    world
}

async fn execute(world: &World, statement: &str) {
    world.client().batch_execute(statement).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_everything_is_equal_again_and_again() {
    let world = World::new().await;
    let traffic = Traffic::start(&world).await;
    let fault = ["--fault-rate", "0.1"];
    let mut processes = vec![
        Process::start(&world, "streamer", &fault),
        Process::start(&world, "consumer", &[&["c0"][..], &fault].concat()),
        Process::start(&world, "consumer", &[&["c1"][..], &fault].concat()),
        Process::start(&world, "reaper", &["--keep", "0s", "--interval", "10ms"]),
    ];
    for round in 0..15 {
        more_rides(&world, 20).await;
        if round % 5 == 0 {
            world.stage_data(r#"{"id":1,"distance_mm":-5}"#).await;
            processes.push(Process::start(&world, "consumer", &[&format!("late-{round}")]));
        }
        equal(&world).await;
    }
    traffic.stop().await;
    let registered = "SELECT count(*) FROM checkpoints WHERE NOT is_baseline";
    wait_until("all five are registered", async || world.number(registered).await == 5).await;
    converge(&world, &["c0", "c1", "late-0", "late-5", "late-10"]).await;
    let output = Process::start(&world, "audit", &["--json", "--all-partitions"]).succeed().await;
    let report: serde_json::Value = serde_json::from_str(&output).unwrap();
    assert_eq!((&report["difference_count"], &report["rides"]["is_equal"]), (&0.into(), &true.into()), "{report}");
    for process in processes {
        process.stop().await;
    }
}

#[tokio::test]
async fn a_changed_state_is_told_with_what_it_should_be() {
    let world = sound_world().await;
    let line = world.committed("c0").await.1;
    execute(&world, &falsify("c0", "total_distance_mm", 7)).await;
    let expected = format!(
        "DIFFERENCE: c0: at offset 30 its state is 30 rides and {} mm, and its records make 30 rides and {} mm: +0 rides, +7 mm",
        line.total_distance_mm + 7,
        line.total_distance_mm
    );
    different(&world, &[&expected, "consumer c1, partition 0: offset 10, 10 rides"]).await;
    execute(&world, &falsify("c0", "total_distance_mm", -7)).await;
    equal(&world).await;
    execute(&world, &falsify("c1", "digest", 1)).await;
    different(&world, &["DIFFERENCE: c1: at offset 10 count and sum are right, but the digest is"]).await;
}

#[tokio::test]
async fn a_deleted_record_is_told_with_its_batch() {
    let world = sound_world().await;
    execute(&world, "DELETE FROM staged_log_records WHERE id = 15").await;
    different(
        &world,
        &[
            "DIFFERENCE: log, partition 0: the batches from offset 11 on have 20 records, and 19 rows are there",
            "DIFFERENCE: log, partition 0: batch 11 of partition 0 has 10 records, but only 9 are there",
            "note: rides were not compared",
        ],
    )
    .await;
    let world = sound_world().await;
    execute(&world, "DELETE FROM log_batches WHERE first_offset = 11").await;
    different(&world, &["DIFFERENCE: log, partition 0: a batch begins at offset 21, and should begin at 11"]).await;
}

#[tokio::test]
async fn a_changed_stream_entry_is_told_and_strangers_and_holes_are_noted() {
    let world = sound_world().await;
    let mut redis = world.redis().await;
    // The test rewrites the stream: entry 12 gets other data, entry 14 another token, and entry 16 is left out.
    let entries: Vec<(String, Vec<String>)> =
        redis::cmd("XRANGE").arg(world.stream_name()).arg("11").arg("+").query_async(&mut redis).await.unwrap();
    let _: () = redis::cmd("DEL").arg(world.stream_name()).query_async(&mut redis).await.unwrap();
    for (id, mut fields) in entries {
        match id.as_str() {
            "12-0" => fields[3] = r#"{"id":12,"distance_mm":1}"#.to_owned(),
            "14-0" => fields[1] = "5 1 4 ride create".to_owned(),
            "16-0" => continue,
            _ => {}
        }
        let _: String =
            redis::cmd("XADD").arg(world.stream_name()).arg(id).arg(fields).query_async(&mut redis).await.unwrap();
    }
    let stream = world.stream_name();
    different(
        &world,
        &[
            &format!(
                "DIFFERENCE: stream {stream}: entry 12-0 has the token of its batch, and not the data of its record"
            ),
            &format!("stream {stream}: 17 entries equal, 1 different, 1 strangers, 2 records not in it"),
            "1 differences",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_ride_without_a_record_is_found() {
    let world = sound_world().await;
    execute(&world, "INSERT INTO rides (id, distance_mm) VALUES (1000, 5)").await;
    different(&world, &["DIFFERENCE: rides: the table has 33 and ", "note: ride 1000 of 5 mm has no equal record"])
        .await;
    let world = sound_world().await;
    execute(&world, "UPDATE rides SET distance_mm = distance_mm + 1 WHERE id = 20").await;
    different(&world, &["note: ride 20 of ", "note: a record tells of ride 20 of "]).await;
    let world = sound_world().await;
    world.stage_data(r#"{"id":2000,"distance_mm":5}"#).await;
    different(&world, &["note: a record tells of ride 2000 of 5 mm, and there is no equal ride"]).await;
}

#[tokio::test]
async fn dead_letters_are_taken_into_account_and_forged_ones_told() {
    let forge = "INSERT INTO dead_letters (name, partition, record_offset, object, action, data, reason)
                 SELECT 'c0', 0, 12, object, action, data::text, 'forged' FROM staged_log_records WHERE id = 12";
    let world = sound_world().await;
    execute(&world, forge).await;
    let line = "DIFFERENCE: c0: at offset 30 its state is 30 rides";
    different(&world, &[line]).await;
    let output = Process::start(&world, "audit", &[]).fail(1).await;
    assert!(output.contains("the record at offset 12 is in the state, and among its dead letters"), "{output}");
    execute(&world, "UPDATE dead_letters SET data = '{\"id\":12,\"distance_mm\":-1}'").await;
    different(&world, &["DIFFERENCE: c0: its dead letter at offset 12 is not the record at that offset"]).await;
    execute(&world, "UPDATE dead_letters SET record_offset = 3").await;
    different(&world, &["DIFFERENCE: c0: its dead letter at offset 3 is not among the baseline's"]).await;
    execute(&world, "UPDATE dead_letters SET record_offset = 99").await;
    different(&world, &["DIFFERENCE: c0: its dead letter at offset 99 lies beyond its checkpoint, 30"]).await;

    // True dead letters: rejected, replayed, dropped and reaped.
    let world = with_rejected("c0", 20).await;
    let output = equal(&world).await;
    assert!(output.contains("note: c0: the fold accepts today what it rejected at offset 5, 10, 15, 20"), "{output}");
    Process::start(&world, "dead-letters", &["replay", "c0", "5"]).succeed().await;
    Process::start(&world, "dead-letters", &["drop", "c0", "10"]).succeed().await;
    let output = equal(&world).await;
    assert!(output.contains("what it rejected at offset 15, 20:"), "{output}");
    reap(&world, &["--keep", "0s"]).await;
    equal(&world).await;
    Process::start(&world, "dead-letters", &["replay", "c0", "--all"]).succeed().await;
    equal(&world).await;
    execute(&world, "DELETE FROM dead_letters WHERE name = 'c0'").await;
    different(&world, &["DIFFERENCE: c0: at offset 20 its state is 19 rides"]).await;
}

#[tokio::test]
async fn a_rejected_record_must_be_among_the_dead_letters() {
    let world = World::new().await;
    let mut streamer = world.streamer();
    for _ in 0..2 {
        world.stage_data(r#"{"id":1,"distance_mm":-5}"#).await;
        world.drain_streamer(&mut streamer).await;
        world.drain_consumer(&mut world.consumer("c0")).await;
        equal(&world).await;
        execute(&world, "DELETE FROM dead_letters WHERE name = 'c0'").await;
        different(&world, &["DIFFERENCE: c0: the fold rejects the record at offset "]).await;
        execute(&world, "DELETE FROM checkpoints").await;
        execute(&world, "DELETE FROM unregistered_consumers").await;
    }
}

#[tokio::test]
async fn a_consumer_where_it_cannot_be_is_told() {
    let world = sound_world().await;
    execute(&world, "UPDATE checkpoints SET last_offset = 5 WHERE name = 'c1'").await;
    different(&world, &["DIFFERENCE: c1: it is at offset 5, and neither the log nor the history has its next record"])
        .await;
    execute(&world, "UPDATE checkpoints SET last_offset = 31 WHERE name = 'c1'").await;
    different(&world, &["DIFFERENCE: c1: it is at offset 31, ahead of the head, 30"]).await;
    execute(&world, "DELETE FROM checkpoints WHERE is_baseline").await;
    different(
        &world,
        &["DIFFERENCE: log, partition 0: the records before 11 are reaped, and no baseline has the fold"],
    )
    .await;
}

/// The fold rejects a ride beyond 64 bits. The table and the records have it, and are compared exactly.
#[tokio::test]
async fn sums_beyond_64_bits_are_compared() {
    const NEARLY_FULL: i64 = i64::MAX - 5;
    let world = World::new().await;
    let (mut streamer, mut consumer) = (world.streamer(), world.consumer("c0"));
    world.carry_rides(10, &mut streamer, &mut consumer).await;
    reap(&world, &["--keep", "0s"]).await;
    let fill = format!(
        "ALTER TABLE rides DROP CONSTRAINT rides_distance_mm_in_range;
         UPDATE rides SET distance_mm = {NEARLY_FULL} - (SELECT sum(distance_mm) FROM rides WHERE id > 1) WHERE id = 1;
         UPDATE checkpoints SET generation = generation + 1,
                state = jsonb_set(state::jsonb, '{{total_distance_mm}}', '{NEARLY_FULL}')::text::fold_state"
    );
    execute(&world, &fill).await;
    world.stage(1000, 6).await;
    execute(&world, "INSERT INTO rides (id, distance_mm) VALUES (1000, 6)").await;
    world.drain_streamer(&mut streamer).await;
    world.drain_consumer(&mut world.consumer("c0")).await;
    let output = equal(&world).await;
    assert!(output.contains("rides: 11, 9223372036854775808 mm: equal"), "{output}");
    assert!(!output.contains("accepts today"), "the fold would reject it again: {output}");
    execute(&world, "UPDATE rides SET distance_mm = distance_mm + 1 WHERE id = 1000").await;
    different(&world, &["DIFFERENCE: rides: the table has 11 and 9223372036854775809 mm"]).await;
    let (status, totals) = Api::start(&world).await.get("/totals").await;
    assert_eq!((status, &totals["sql"]["total_distance_mm"]), (200, &i64::MAX.into()));
    assert_eq!(totals["converged"], false);
}

#[tokio::test]
async fn without_redis_postgres_is_audited_and_that_is_said() {
    let mut redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    world.carry_rides(10, &mut world.streamer(), &mut world.consumer("c0")).await;
    equal(&world).await;
    redis.kill().await;
    different(&world, &["DIFFERENCE: stream: not compared", "rides: 10, "]).await;
    Process::start(&world, "audit", &["--no-stream"]).succeed().await;
    Process::start(&world, "audit", &["--no-such-flag"]).fail(2).await;
}
