//! The audit of a log with several partitions: nothing to tell of a sound one, and each damage with its partition.

use serde_json::Value;
use tests::{Process, World, falsify};

use crate::partitions_cluster::TestCluster;
use crate::partitions_operators::{
    COUNT, carry_rides, fold, fold_in, partition, partitions, publish, stage, stream_of, sum_of, write_rides,
};
use crate::reaper::reap;

/// Runs `audit`, which must find no difference.
async fn equal(world: &World, args: &[&str]) -> String {
    Process::start(world, "audit", args).succeed().await
}

/// Runs `audit`, which must find differences and print a line that begins with each of `lines`.
async fn different(world: &World, lines: &[&str]) {
    let output = Process::start(world, "audit", &[]).fail(1).await;
    for line in lines {
        assert!(output.lines().any(|printed| printed.starts_with(line)), "no line {line:?} in\n{output}");
    }
}

async fn execute(world: &World, statement: &str) {
    world.client().batch_execute(statement).await.unwrap();
}

/// A world with 600 rides in eight partitions, some of them reaped, and two consumers.
async fn sound_world() -> World {
    let world = World::cut(COUNT).await;
    carry_rides(&world, 200, &["c0", "c1"]).await;
    reap(&world, &["--keep", "0s"]).await;
    carry_rides(&world, 400, &["c0", "c1"]).await;
    world
}

/// The head of partition 3, and its first retained offset.
async fn edges(world: &World) -> (i64, i64) {
    let head = pglog::head(world.client(), partition(3)).await.unwrap();
    (head, pglog::first_retained(world.client(), partition(3)).await.unwrap())
}

#[tokio::test]
async fn a_sound_log_is_equal_and_sums_are_sqls_own() {
    let world = sound_world().await;
    let (count, distance) = sum_of(&world, "c0").await;
    let output = equal(&world, &[]).await;
    let line = format!("consumer c0, all partitions: {count} rides, {distance} mm: equal\n");
    assert!(output.contains(&line) && output.contains("log, partition 7: head "), "{output}");
    let stream = stream_of(&world).await.key(partition(3));
    assert!(output.contains(&format!("stream {stream}: ")) && output.contains(" 0 different, 0 strangers"), "{output}");
    let report: Value = serde_json::from_str(&equal(&world, &["--json"]).await).unwrap();
    assert_eq!(report["partitions"].as_array().unwrap().len(), 8);
    assert_eq!((&report["sums"][0]["is_equal"], &report["rides"]["is_equal"]), (&true.into(), &true.into()));
    // What is staged without an offset is no difference, and no consumer has it.
    write_rides(&world, 5).await;
    let output = equal(&world, &[]).await;
    assert!(output.contains(&format!("{count} rides, {distance} mm: not compared\n")), "{output}");
    publish(&world).await;
    fold(&world, "c0").await;
    fold_in(&world, "c1", partitions().filter(|one| *one != partition(3))).await;
    let output = equal(&world, &[]).await;
    assert!(output.contains("consumer c0, all partitions: 605 rides"), "{output}");
    let some = equal(&world, &["--partitions", "0,3"]).await;
    assert!(some.contains("log, partition 3: ") && !some.contains("log, partition 4: "), "{some}");
    assert!(some.contains("note: rides were not compared: their records are in all partitions"), "{some}");
    let output = Process::start(&world, "audit", &["--partitions", "8"]).fail(2).await;
    assert!(output.contains("give numbers from 0 to 7"), "{output}");
}

#[tokio::test]
async fn a_changed_state_is_told_with_its_partition() {
    let world = sound_world().await;
    let (count, distance) = sum_of(&world, "c0").await;
    execute(&world, &format!("{} AND partition = 3", falsify("c0", "total_distance_mm", 7))).await;
    let head = edges(&world).await.0;
    let sum = format!("DIFFERENCE: c0: over all partitions it has {count} rides and {} mm, and ", distance + 7);
    different(&world, &[&format!("DIFFERENCE: partition 3: c0: at offset {head} its state is "), &sum]).await;
}

#[tokio::test]
async fn a_deleted_record_and_a_deleted_batch_are_told_with_their_partition() {
    let world = sound_world().await;
    let (head, first) = edges(&world).await;
    execute(
        &world,
        "DELETE FROM staged_log_records WHERE id = (SELECT max(id) FROM staged_log_records WHERE partition = 3)",
    )
    .await;
    let len = head + 1 - first;
    let line = format!(
        "DIFFERENCE: log, partition 3: the batches from offset {first} on have {len} records, and {} rows are there",
        len - 1
    );
    different(&world, &[&line]).await;
    let world = sound_world().await;
    carry_rides(&world, 100, &["c0", "c1"]).await;
    let first = edges(&world).await.1;
    let delete = format!("DELETE FROM log_batches WHERE partition = 3 AND first_offset = {first}");
    execute(&world, &delete).await;
    different(&world, &["DIFFERENCE: log, partition 3: a batch begins at offset "]).await;
}

#[tokio::test]
async fn a_changed_entry_of_a_stream_is_told_with_its_partition() {
    let world = sound_world().await;
    let key = stream_of(&world).await.key(partition(3));
    let mut redis = world.redis().await;
    let mut last: Vec<(String, Vec<String>)> =
        redis::cmd("XREVRANGE").arg(&key).arg("+").arg("-").arg("COUNT").arg(1).query_async(&mut redis).await.unwrap();
    let (id, mut fields) = last.remove(0);
    fields[3] = r#"{"id":1,"distance_mm":1}"#.to_owned();
    let _: i64 = redis::cmd("XDEL").arg(&key).arg(&id).query_async(&mut redis).await.unwrap();
    let copy = format!("{}-1", id.split('-').next().unwrap());
    let _: String = redis::cmd("XADD").arg(&key).arg(&copy).arg(fields).query_async(&mut redis).await.unwrap();
    let line =
        format!("DIFFERENCE: partition 3: stream {key}: entry {copy} has the token of its batch, and not the data");
    different(&world, &[&line]).await;
}

#[tokio::test]
async fn a_key_in_the_partition_of_another_is_told() {
    let world = sound_world().await;
    let wrong = "SELECT ((partition_of($1) + 1) % 8)::int4";
    for (object, action, key, data) in [
        ("charge", "create", "5", r#"{"id":"ch_1","ride_id":1,"user_id":5}"#),
        ("receipt", "create", "5", r#"{"ride_id":1,"user_id":5}"#),
        ("unit", "commit", "photos/a", r#"{"uow":1,"resource":"photos","subject":"a"}"#),
    ] {
        let wrong: i32 = world.client().query_one(wrong, &[&key]).await.unwrap().get(0);
        stage(&world, partition(wrong), object, action, data).await;
    }
    let line = |object: &str, action: &str, key: &str| {
        let belongs = pglog::PartitionCount::new(COUNT).unwrap().partition_of(key).number();
        let wrong = (belongs + 1) % COUNT;
        format!(
            "DIFFERENCE: partition {wrong}: it has a record {object} {action} with the key {key}, which belongs in partition \
             {belongs} (P1)"
        )
    };
    let lines = [line("charge", "create", "5"), line("receipt", "create", "5"), line("unit", "commit", "photos/a")];
    different(&world, &lines.each_ref().map(String::as_str)).await;
    // A ride, after its record was reaped: the history has it.
    let world = World::cut(COUNT).await;
    write_rides(&world, 50).await;
    let moved = "INSERT INTO rides (id, distance_mm) OVERRIDING SYSTEM VALUE VALUES (1000, 5)";
    execute(&world, moved).await;
    let belongs = pglog::PartitionCount::new(COUNT).unwrap().partition_of("1000").number();
    let wrong = partition((belongs + 1) % COUNT);
    stage(&world, wrong, "ride", "create", r#"{"id":1000,"distance_mm":5}"#).await;
    publish(&world).await;
    fold(&world, "c0").await;
    Process::start(&world, "consumer", &["history", "--fold", "history", "--drain"]).succeed().await;
    different(&world, &[&line("ride", "create", "1000")]).await;
    assert!(reap(&world, &["--keep", "0s"]).await.record_count == 51);
    equal(&world, &[]).await;
    let output = Process::start(&world, "audit", &["--from", "start"]).fail(1).await;
    assert!(output.contains(&line("ride", "create", "1000")), "{output}");
}

#[tokio::test]
async fn a_ride_without_a_record_and_a_consumer_of_some_partitions_are_told() {
    let world = sound_world().await;
    fold_in(&world, "half", partitions().take(2)).await;
    let output = equal(&world, &[]).await;
    assert!(output.contains("note: half: it is registered in the partitions 0, 1 only"), "{output}");
    execute(&world, "INSERT INTO rides (id, distance_mm) VALUES (100000, 5)").await;
    let lines = ["DIFFERENCE: rides: the table has 601 and ", "note: ride 100000 of 5 mm has no equal record"];
    different(&world, &lines).await;
}

#[tokio::test]
async fn a_history_with_a_hole_is_told_with_its_partition() {
    let world = World::cut(COUNT).await;
    carry_rides(&world, 200, &["c0"]).await;
    Process::start(&world, "consumer", &["history", "--fold", "history", "--drain"]).succeed().await;
    reap(&world, &["--keep", "0s"]).await;
    equal(&world, &["--from", "start"]).await;
    execute(&world, "DELETE FROM history WHERE partition = 3 AND record_offset = 5").await;
    different(&world, &["DIFFERENCE: history, partition 3: it lacks the record at offset 5 inside of a range"]).await;
}

#[tokio::test]
async fn dead_letters_are_to_be_replayed_in_their_partition() {
    let world = World::cut(COUNT).await;
    stage(&world, partition(3), "ride", "create", r#"{"id":1000001,"distance_mm":-5}"#).await;
    carry_rides(&world, 100, &["c0"]).await;
    let letters = world.number("SELECT count(*) FROM dead_letters WHERE partition = 3").await;
    assert_eq!(letters, 1);
    // A dead letter that the fold of today accepts.
    let data = r#"UPDATE dead_letters SET data = '{"id":1000001,"distance_mm":5}'"#;
    execute(&world, data).await;
    let output = Process::start(&world, "audit", &[]).fail(1).await;
    let belongs = pglog::PartitionCount::new(COUNT).unwrap().partition_of("1000001").number();
    assert!(output.contains("partition 3: c0: its dead letter at offset "), "{output}");
    assert!(belongs == 3 || output.contains("(P1)"), "{output}");
}

#[tokio::test]
async fn the_streams_of_a_cluster_are_compared_wherever_they_are() {
    let mut cluster = TestCluster::start().await;
    let world = World::cut_on(&std::env::var("DATABASE_URL").unwrap(), &cluster.url(), COUNT).await;
    carry_rides(&world, 200, &["c0"]).await;
    let output = equal(&world, &[]).await;
    let compared = |output: &str| output.lines().filter(|line| line.starts_with("stream ")).count();
    assert_eq!(compared(&output), 8, "{output}");
    cluster.kill_first().await;
    let output = Process::start(&world, "audit", &[]).fail(1).await;
    let away = output.lines().filter(|line| line.contains(": stream: not compared, ")).count();
    assert!(away > 0 && away + compared(&output) == 8, "{output}");
    equal(&world, &["--no-stream"]).await;
}
