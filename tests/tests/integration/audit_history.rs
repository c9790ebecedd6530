//! The audit of the history, and of consumers that read it: equal histories pass, and each difference is named.

use tests::{Process, World, wait_until};

use crate::bootstrap::{Traffic, converge, more_rides};
use crate::reaper::reap;

/// Runs `audit`, which must find no difference.
async fn equal(world: &World, args: &[&str]) -> String {
    Process::start(world, "audit", args).succeed().await
}

/// Runs `audit`, which must find differences and print each of these lines.
async fn different(world: &World, args: &[&str], lines: &[&str]) {
    let output = Process::start(world, "audit", args).fail(1).await;
    assert_lines(&output, lines);
}

/// Asserts that for each of `lines` there is a line that begins with it.
fn assert_lines(output: &str, lines: &[&str]) {
    for line in lines {
        assert!(output.lines().any(|printed| printed.starts_with(line)), "no line {line:?} in\n{output}");
    }
}

async fn execute(world: &World, statement: &str) {
    world.client().batch_execute(statement).await.unwrap();
}

/// Archives everything that has an offset.
async fn archive(world: &World) {
    Process::start(world, "consumer", &["history", "--fold", "history", "--drain"]).succeed().await;
}

/// Adds ten rides, which c0 folds.
async fn ten_rides(world: &World) {
    world.carry_rides(10, &mut world.streamer(), &mut world.consumer("c0")).await;
}

/// A world with thirty rides, all of them archived, and the first twenty of them reaped.
async fn archived_world() -> World {
    let world = World::new().await;
    for round in 0..3 {
        ten_rides(&world).await;
        archive(&world).await;
        if round < 2 {
            reap(&world, &["--keep", "0s"]).await;
        }
    }
    world
}

#[tokio::test]
async fn a_whole_history_is_equal_and_everything_can_be_counted_from_the_start() {
    let world = archived_world().await;
    let output = equal(&world, &[]).await;
    let history =
        ["consumer history, partition 0: offset 30, fold history version 1: equal", "history, partition 0: 30 records"];
    assert_lines(&output, &history);
    let output = equal(&world, &["--from", "start"]).await;
    let baseline = "consumer baseline, partition 0: offset 20, 20 rides";
    assert_lines(&output, &[baseline, history[0], history[1], "log, partition 0: head 30, 10 records from offset 21"]);
    // A wrong baseline is only seen from the start, and from the baseline all others seem to be wrong.
    execute(&world, &tests::falsify("baseline", "total_distance_mm", 7)).await;
    different(&world, &["--from", "start"], &["DIFFERENCE: baseline: at offset 20", "1 differences"]).await;
    different(&world, &[], &["DIFFERENCE: c0: at offset 30"]).await;
}

#[tokio::test]
async fn archived_records_that_differ_or_are_missing_are_told() {
    let world = archived_world().await;
    execute(&world, "UPDATE history SET data = '{}', action = 'update' WHERE record_offset = 25").await;
    let line = "DIFFERENCE: history, partition 0: the record at offset 25 has another action, data";
    different(
        &world,
        &[],
        &[line, "1 differences", "consumer history, partition 0: offset 30, fold history version 1: D"],
    )
    .await;
    let world = archived_world().await;
    execute(&world, "UPDATE history SET staged_at = staged_at + '1 us' WHERE record_offset = 30").await;
    let line = "DIFFERENCE: history, partition 0: the record at offset 30 has another staged_at";
    different(&world, &[], &[line]).await;
    execute(&world, "DELETE FROM history WHERE record_offset IN (1, 8, 9, 23, 30)").await;
    let lines = [
        "DIFFERENCE: history, partition 0: it lacks the record at offset 1 inside of a range",
        "DIFFERENCE: history, partition 0: it lacks the records at the offsets 8 to 9 inside of a range",
        "DIFFERENCE: history, partition 0: it lacks the record at offset 23, and its consumer has passed offset 23",
        "DIFFERENCE: history, partition 0: it lacks the record at offset 30, and its consumer has passed offset 30",
        "4 differences",
    ];
    different(&world, &[], &lines).await;
    execute(&world, "INSERT INTO history SELECT 0, 31, 'ride', 'create', '{}', now()").await;
    different(&world, &[], &["DIFFERENCE: history, partition 0: it has a record at offset 31, beyond the head, 30"])
        .await;
}

#[tokio::test]
async fn a_hole_is_noted_and_told_where_it_is_needed() {
    let world = World::new().await;
    ten_rides(&world).await;
    reap(&world, &["--keep", "0s"]).await;
    // It begins late, and lacks ten further records while its consumer is unregistered.
    for is_registered in [true, false, true] {
        ten_rides(&world).await;
        if is_registered {
            execute(&world, "DELETE FROM unregistered_consumers").await;
            archive(&world).await;
        }
        reap(&world, &["--keep", "0s"]).await;
        if is_registered {
            Process::start(&world, "consumer", &["history", "--unregister"]).succeed().await;
        }
    }
    ten_rides(&world).await;
    execute(&world, "DELETE FROM unregistered_consumers").await;
    archive(&world).await;
    let notes = [
        "note: history, partition 0: it lacks the records at the offsets 1 to 10: it began later",
        "note: history, partition 0: it lacks the records at the offsets 21 to 30: it began later",
        "history, partition 0: 30 records up to offset 50, 2 holes",
    ];
    assert_lines(&equal(&world, &[]).await, &notes);
    let needed = "DIFFERENCE: log, partition 0: it cannot be counted from the start: neither the log nor the history has \
                  the records at the offsets 1 to 10. It is counted from the baseline";
    different(&world, &["--from", "start"], &[needed, "1 differences"]).await;
    // A consumer whose next record is nowhere is told, and a consumer whose next record is archived replays.
    execute(&world, "UPDATE checkpoints SET last_offset = 25 WHERE name = 'c0'").await;
    let nowhere = "DIFFERENCE: c0: it is at offset 25, and neither the log nor the history has its next record";
    different(&world, &[], &[nowhere]).await;
    execute(&world, "UPDATE checkpoints SET last_offset = 30 WHERE name = 'c0'").await;
    let replaying = "note: c0: replaying, not compared: it is at offset 30, and the baseline at 40";
    assert_lines(&equal(&world, &[]).await, &[replaying, "consumer c0, partition 0: offset 30, 50 rides"]);
}

#[tokio::test]
async fn a_detached_part_is_a_hole() {
    let world = World::new().await;
    let short =
        "CREATE OR REPLACE FUNCTION history_part_len() RETURNS BIGINT LANGUAGE sql IMMUTABLE AS 'SELECT 10::bigint'";
    execute(&world, short).await;
    for _ in 0..4 {
        ten_rides(&world).await;
    }
    archive(&world).await;
    reap(&world, &["--keep", "0s"]).await;
    execute(&world, "DELETE FROM history WHERE record_offset BETWEEN 20 AND 29").await;
    let lacking = "history, partition 0: it lacks the records at the offsets 20 to 29";
    different(&world, &[], &[&format!("DIFFERENCE: {lacking} inside of a range")]).await;
    execute(&world, "ALTER TABLE history DETACH PARTITION history_2").await;
    assert_lines(&equal(&world, &[]).await, &[&format!("note: {lacking}: it began later")]);
}

#[tokio::test]
async fn a_consumer_that_replays_is_not_compared_except_from_the_start() {
    let world = archived_world().await;
    let start = ["old", "--from", "start", "--drain"];
    Process::start(&world, "consumer", &start).succeed().await;
    assert_lines(&equal(&world, &[]).await, &["consumer old, partition 0: offset 30, 30 rides"]);
    // It gets the total that it had at offset 5.
    let row = "SELECT sum((data->>'distance_mm')::bigint)::bigint FROM history WHERE record_offset <= 5";
    let distance_mm = world.number(row).await;
    let back = format!(
        "UPDATE checkpoints SET last_offset = 5, state = json_build_object(
             'total_distance_mm', {distance_mm}, 'ride_count', 5, 'digest', '0') WHERE name = 'old'"
    );
    execute(&world, &back).await;
    let lines = ["note: old: replaying, not compared: it is at offset 5, and the baseline at 20"];
    assert_lines(&equal(&world, &[]).await, &lines);
    // From the start it is compared, and has another digest.
    different(&world, &["--from", "start"], &["DIFFERENCE: old: at offset 5 count and sum are right", "1 differences"])
        .await;
}

#[tokio::test]
async fn consumers_of_other_folds_and_versions_are_listed_and_not_compared() {
    let world = archived_world().await;
    world.drain_consumer(&mut world.consumer("c1")).await;
    execute(&world, "UPDATE checkpoints SET fold_version = 2 WHERE name = 'c1'").await;
    execute(&world, "INSERT INTO checkpoints (name, last_offset, fold, fold_version) VALUES ('r', 25, 'receipts', 1)")
        .await;
    execute(&world, "INSERT INTO checkpoints (name, last_offset) VALUES ('x', 25)").await;
    execute(&world, &tests::falsify("c1", "total_distance_mm", 7)).await;
    let lines = [
        "note: c1: not compared: the audit does not know its fold, distance version 2",
        "note: r: not compared: the audit does not know its fold, receipts version 1",
        "note: x: not compared: it is registered without a fold",
        "consumer c1, partition 0: offset 30, fold distance version 2: not compared",
        "consumer r, partition 0: offset 25, fold receipts version 1: not compared",
        "consumer x, partition 0: offset 25, no fold: not compared",
        "consumer c0, partition 0: offset 30, 30 rides",
    ];
    assert_lines(&equal(&world, &[]).await, &lines);
    let report: serde_json::Value = serde_json::from_str(&equal(&world, &["--json"]).await).unwrap();
    let consumers = report["consumers"].as_array().unwrap();
    let line = |name: &str| consumers.iter().find(|line| line["name"] == name).unwrap();
    assert_eq!((&line("r")["fold"], &line("r")["is_equal"]), (&"receipts".into(), &serde_json::Value::Null));
    assert!(line("r").get("ride_count").is_none() && line("c0")["ride_count"] == 30, "{report}");
    assert_eq!(report["histories"][0]["record_count"], 30);
    // A state that this version cannot read is told. A baseline of another version is not counted from.
    execute(&world, "UPDATE checkpoints SET state = '{}' WHERE name = 'c0'").await;
    different(&world, &[], &["DIFFERENCE: c0: its state cannot be read", "1 differences"]).await;
    execute(&world, "DELETE FROM checkpoints WHERE name = 'c0'").await;
    execute(&world, "UPDATE checkpoints SET fold_version = 2 WHERE is_baseline").await;
    let line = "DIFFERENCE: log, partition 0: the records before 21 are reaped, and no baseline has the fold distance version 1";
    different(&world, &[], &[line, "1 differences"]).await;
    equal(&world, &["--from", "start"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_the_history_is_equal_again_and_again() {
    let world = World::new().await;
    let traffic = Traffic::start(&world).await;
    let fault = ["--fault-rate", "0.1"];
    let mut processes = vec![
        Process::start(&world, "streamer", &fault),
        Process::start(&world, "consumer", &[&["c0"][..], &fault].concat()),
        Process::start(&world, "consumer", &[&["history", "--fold", "history"][..], &fault].concat()),
    ];
    let registered = "SELECT count(*) FROM checkpoints WHERE last_offset > 0";
    wait_until("the history has begun", async || world.number(registered).await == 2).await;
    processes.push(Process::start(&world, "reaper", &["--keep", "0s", "--interval", "10ms"]));
    for round in 0..6 {
        more_rides(&world, 20).await;
        if round % 3 == 0 {
            let name = format!("late-{round}");
            processes.push(Process::start(
                &world,
                "consumer",
                &[&[name.as_str(), "--from", "start"][..], &fault].concat(),
            ));
        }
        equal(&world, &[]).await;
        equal(&world, &["--from", "start"]).await;
    }
    traffic.stop().await;
    let registered = "SELECT count(*) FROM checkpoints WHERE NOT is_baseline";
    wait_until("all are registered", async || world.number(registered).await == 4).await;
    converge(&world, &["c0", "late-0", "late-3"]).await;
    let output = equal(&world, &["--from", "start"]).await;
    let head = pglog::head(world.client(), pglog::Partition::FIRST).await.unwrap();
    let history = format!("history, partition 0: {head} records up to offset {head}, 0 holes");
    assert_lines(&output, &[&history]);
    for process in processes {
        process.stop().await;
    }
}
