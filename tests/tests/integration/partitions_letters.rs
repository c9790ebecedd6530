//! Dead letters and restores of a log with several partitions.

use tests::{PrivatePostgres, Process, World, wait_until};

use crate::partitions_operators::{COUNT, carry_rides, partition, partitions, publish, stage, sum_of, write_rides};

/// A world with one dead letter of the consumer c0 at offset 1 of the partitions 0 and 3 each.
async fn with_letters() -> World {
    let world = World::cut(COUNT).await;
    for number in [0, 3] {
        stage(&world, partition(number), "ride", "create", r#"{"id":1,"distance_mm":-5}"#).await;
    }
    publish(&world).await;
    carry_rides(&world, 40, &["c0"]).await;
    assert_eq!(world.number("SELECT sum(record_offset)::bigint FROM dead_letters").await, 2);
    world
}

fn dead_letters(world: &World, args: &[&str]) -> Process {
    Process::start(world, "dead-letters", args)
}

#[tokio::test]
async fn dead_letters_are_listed_with_their_partitions() {
    let world = with_letters().await;
    let output = dead_letters(&world, &["list"]).succeed().await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 2, "{output}");
    assert!(lines[0].starts_with("c0 1 (partition 0) ride create: distance_mm -5 is not between"), "{output}");
    assert!(lines[1].starts_with("c0 1 (partition 3) ride create: "), "{output}");
    let output = dead_letters(&world, &["list", "--partition", "3"]).succeed().await;
    assert!(output.starts_with("c0 1 (partition 3) ") && output.lines().count() == 1, "{output}");
    let output = dead_letters(&world, &["list", "--partitions", "9"]).fail(2).await;
    assert!(output.contains("partition 9 is not one of them"), "{output}");
}

#[tokio::test]
async fn an_offset_without_its_partition_is_never_guessed() {
    let world = with_letters().await;
    for action in ["show", "replay", "drop"] {
        let output = dead_letters(&world, &[action, "c0", "1"]).fail(2).await;
        assert!(
            output.contains("give the partition") && output.contains("--partitions 0 or --partitions 3"),
            "{output}"
        );
    }
    assert_eq!(world.number("SELECT count(*) FROM dead_letters WHERE dropped_at IS NULL").await, 2);
    dead_letters(&world, &["drop", "c0", "1", "--partitions", "0"]).succeed().await;
    let output = dead_letters(&world, &["show", "c0", "1", "--partitions", "3"]).succeed().await;
    assert!(output.contains("consumer c0, partition 3, offset 1"), "{output}");
    assert_eq!(world.number("SELECT count(*) FROM dead_letters WHERE dropped_at IS NULL AND partition = 3").await, 1);
    let output = dead_letters(&world, &["drop", "c0", "1", "--partitions", "5"]).fail(1).await;
    assert!(output.contains("has no dead letter at offset 1 of partition 5"), "{output}");
}

#[tokio::test]
async fn all_partitions_are_replayed_with_one_command_and_sums_stay_exact() {
    let world = with_letters().await;
    let before = sum_of(&world, "c0").await;
    let mend = r#"UPDATE dead_letters SET data = '{"id":1,"distance_mm":7}'"#;
    world.client().batch_execute(mend).await.unwrap();
    let output = dead_letters(&world, &["replay", "c0", "--all"]).succeed().await;
    assert!(
        output.contains("c0 1 (partition 0): folded\n") && output.contains("c0 1 (partition 3): folded"),
        "{output}"
    );
    assert_eq!(sum_of(&world, "c0").await, (before.0 + 2, before.1 + 14));
}

/// A hash of everything that `adopt` may write.
async fn fingerprint(world: &World) -> String {
    let query =
        "SELECT concat_ws(' ', (SELECT md5(string_agg(r::text, ',' ORDER BY r::text)) FROM staged_log_records r),
                                       (SELECT md5(string_agg(b::text, ',' ORDER BY b::text)) FROM log_batches b),
                                       (SELECT string_agg(i::text, ',') FROM log_identity i))";
    world.client().query_one(query, &[]).await.unwrap().get(0)
}

/// The data of every record with an offset, in order, for each partition.
async fn records(world: &World) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for one in partitions() {
        let query = "SELECT data::text FROM log_records_after(0, 100000, $1)";
        let rows = world.client().query(query, &[&one]).await.unwrap();
        all.push(rows.iter().map(|row| row.get(0)).collect());
    }
    all
}

#[tokio::test]
async fn a_restored_log_is_adopted_in_all_partitions_at_once() {
    let world = World::cut(COUNT).await;
    carry_rides(&world, 200, &["c0"]).await;
    write_rides(&world, 50).await;
    // A second log, with a partition that no streamer has read.
    let unread = World::cut(COUNT).await;
    stage(&unread, partition(5), "ride", "create", "[ ]").await;
    let cluster = PrivatePostgres::start().await;
    let restored = world.restored(&world.dump().await, &cluster).await;
    let second = unread.restored(&unread.dump().await, &cluster).await;
    let output = Process::start(&second, "adopt", &[]).succeed().await;
    let line = "partition 5: no record with an offset, the next one is 1; 1 staged records wait for their offsets";
    assert!(output.contains(line), "{output}");
    let log_id = "SELECT log_id::text FROM log_identity";
    let id_before: String = restored.client().query_one(log_id, &[]).await.unwrap().get(0);
    let output = Process::start(&restored, "adopt", &[]).succeed().await;
    assert!(partitions().all(|one| output.contains(&format!("partition {one}: "))), "{output}");
    assert_eq!(
        restored.client().query_one(log_id, &[]).await.unwrap().get::<_, String>(0),
        id_before,
        "the streams keep their names"
    );
    assert_eq!(records(&restored).await, records(&world).await, "I2");
    carry_rides(&restored, 50, &["c0"]).await;
    assert_eq!(sum_of(&restored, "c0").await, restored.sql_totals().await, "P3");
    Process::start(&restored, "audit", &[]).succeed().await;
}

#[tokio::test]
async fn an_adopt_that_was_interrupted_has_changed_nothing_and_is_run_again() {
    let world = World::cut(COUNT).await;
    carry_rides(&world, 100, &["c0"]).await;
    let before = fingerprint(&world).await;
    // A streamer of the last partition alone.
    let leader = world.connect().await;
    leader.execute("SELECT pg_advisory_lock($1 # log_key(), 7)", &[&pglog::LEADER_LOCK]).await.unwrap();
    let output = Process::start(&world, "adopt", &["--force"]).fail(1).await;
    assert!(output.contains("a streamer leads partition 7"), "{output}");
    drop(leader);
    let led = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND objsubid = 2
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    wait_until("the streamer is gone", async || world.number(led).await == 0).await;
    // Killed while it holds every lock: a trigger makes it slow there.
    let slow =
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(30); RETURN NULL; END';
                CREATE TRIGGER slow BEFORE INSERT ON log_identity FOR EACH STATEMENT EXECUTE FUNCTION slow()";
    world.client().batch_execute(slow).await.unwrap();
    let adopt = Process::start(&world, "adopt", &["--force"]);
    let sleeping =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    wait_until("adopt is at its last step", async || world.number(sleeping).await == 1).await;
    adopt.kill().await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND wait_event = 'PgSleep'";
    world.client().execute(end, &[]).await.unwrap();
    world.client().batch_execute("DROP TRIGGER slow ON log_identity").await.unwrap();
    assert_eq!(fingerprint(&world).await, before, "I7");
    let records_before = records(&world).await;
    Process::start(&world, "adopt", &["--force"]).succeed().await;
    assert_eq!(records(&world).await, records_before, "I2");
    carry_rides(&world, 20, &["c0"]).await;
    assert_eq!(sum_of(&world, "c0").await, world.sql_totals().await, "P3");
}
