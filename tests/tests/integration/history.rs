//! The history loses no record when a process is killed, and a new consumer reads reaped records from it.

use tests::{Process, World, wait_until};

use crate::bootstrap::{Traffic, more_rides};
use crate::reaper::reap;

/// Archives everything that has an offset.
async fn archive(world: &World) {
    Process::start(world, "consumer", &["history", "--fold", "history", "--drain"]).succeed().await;
}

/// The ranges that the history has, for example `1-10 16-20`.
async fn ranges(world: &World) -> String {
    let query = "SELECT COALESCE(string_agg(first_offset || '-' || last_offset, ' ' ORDER BY first_offset), '')
                 FROM history_ranges WHERE partition = 0";
    world.client().query_one(query, &[]).await.unwrap().get(0)
}

async fn carry(world: &World, count: i64, consumer: &str) {
    world.write_rides(count).await;
    world.drain_streamer(&mut world.streamer()).await;
    world.drain_consumer(&mut world.consumer(consumer)).await;
}

#[tokio::test]
async fn a_consumer_begins_at_offset_1_after_everything_was_reaped() {
    let world = World::new().await;
    world.stage_data(r#"{"id":1,"distance_mm":-5}"#).await;
    carry(&world, 2_500, "old").await;
    archive(&world).await;
    assert_eq!(reap(&world, &["--keep", "0s"]).await.record_count, 2_501);
    assert_eq!(world.number("SELECT count(*) FROM staged_log_records").await, 0);
    assert_eq!(ranges(&world).await, "1-2501");
    let output = Process::start(&world, "consumer", &["new", "--from", "start", "--drain"]).succeed().await;
    assert!(output.contains("healed_count=2501"), "it reads the history: {output}");
    world.assert_converged(&["old", "new", "baseline"]).await;
    // It goes on with new records, and one that begins with the baseline is equal too.
    carry(&world, 10, "old").await;
    for name in ["new", "late"] {
        Process::start(&world, "consumer", &[name, "--drain"]).succeed().await;
    }
    world.assert_converged(&["old", "new", "late"]).await;
    assert_eq!(world.number("SELECT count(*) FROM dead_letters WHERE record_offset = 1").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_killed_again_and_again_has_every_record_once() {
    let world = World::new().await;
    let traffic = Traffic::start(&world).await;
    let args = ["history", "--fold", "history", "--fault-rate", "0.2"];
    let processes = [
        Process::start(&world, "streamer", &["--fault-rate", "0.1"]),
        Process::start(&world, "consumer", &["consumer0"]),
        Process::start(&world, "reaper", &["--keep", "0s", "--interval", "100ms"]),
    ];
    for _ in 0..8 {
        let mut history = Process::start(&world, "consumer", &args);
        history.wait_for("batch committed").await;
        more_rides(&world, 20).await;
        history.kill().await;
    }
    traffic.stop().await;
    let history = Process::start(&world, "consumer", &args);
    let head = async || pglog::head(world.client(), pglog::Partition::FIRST).await.unwrap();
    wait_until("nothing is staged", async || {
        !pglog::is_anything_staged(world.client(), pglog::Partition::FIRST).await.unwrap()
    })
    .await;
    let expected = format!("1-{}", head().await);
    wait_until("everything is archived", async || ranges(&world).await == expected).await;
    let count = world.number("SELECT count(*) FROM history").await;
    assert_eq!(count, head().await, "every record once");
    let sums = "SELECT count(*) FROM (
                    SELECT id, distance_mm FROM rides
                    EXCEPT SELECT (data->>'id')::bigint, (data->>'distance_mm')::bigint FROM history WHERE object = 'ride') missing";
    assert_eq!(world.number(sums).await, 0, "as it was staged");
    history.stop().await;
    for process in processes {
        process.stop().await;
    }
    Process::start(&world, "consumer", &["new", "--from", "start", "--drain"]).succeed().await;
    world.assert_converged(&["new"]).await;
}

#[tokio::test]
async fn a_hole_in_the_history_is_told_and_never_read_over() {
    let world = World::new().await;
    carry(&world, 10, "old").await;
    reap(&world, &["--keep", "0s"]).await;
    // The history begins late: it lacks what was reaped before.
    carry(&world, 10, "old").await;
    let output = Process::start(&world, "consumer", &["history", "--fold", "history", "--drain"]).succeed().await;
    assert!(
        output.contains("leaves out the records before this offset") && output.contains("first_retained=11"),
        "{output}"
    );
    reap(&world, &["--keep", "0s"]).await;
    // It is unregistered for a while.
    Process::start(&world, "consumer", &["history", "--unregister"]).succeed().await;
    carry(&world, 10, "old").await;
    reap(&world, &["--keep", "0s"]).await;
    carry(&world, 10, "old").await;
    Process::start(&world, "consumer", &["history", "--fold", "history", "--register"]).succeed().await;
    archive(&world).await;
    reap(&world, &["--keep", "0s"]).await;
    assert_eq!(ranges(&world).await, "11-20 31-40");
    let output = Process::start(&world, "consumer", &["new", "--from", "start"]).fail(1).await;
    assert!(output.contains("consumer new cannot begin at offset 1: records before 41 are reaped"), "{output}");
    assert_eq!(world.number("SELECT count(*) FROM checkpoints WHERE name = 'new'").await, 0);
    // A consumer that has begun stops at the hole, and does not fold the records behind it.
    let register = "INSERT INTO checkpoints (name, last_offset, fold, fold_version) VALUES ('rows', 10, 'receipts', 1)";
    world.client().batch_execute(register).await.unwrap();
    let output = Process::start(&world, "consumer", &["rows", "--fold", "receipts"]).fail(1).await;
    assert!(output.contains("21 was asked for"), "{output}");
    assert_eq!(world.number("SELECT last_offset FROM checkpoints WHERE name = 'rows'").await, 20);
    let read = world.client().query("SELECT * FROM log_records_after(20)", &[]).await.unwrap_err();
    assert!(
        format!("{read:?}").contains("the record at offset 21 is reaped, and the history does not have it"),
        "{read:?}"
    );
}

#[tokio::test]
async fn parts_are_made_before_they_are_needed_and_an_old_one_can_be_detached() {
    let world = World::new().await;
    let shorter =
        "CREATE OR REPLACE FUNCTION history_part_len() RETURNS BIGINT LANGUAGE sql IMMUTABLE AS 'SELECT 100::bigint'";
    world.client().batch_execute(shorter).await.unwrap();
    carry(&world, 250, "old").await;
    archive(&world).await;
    let parts = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'history'::regclass";
    assert_eq!(world.number(parts).await, 4, "offsets 0 to 399: one part ahead");
    reap(&world, &["--keep", "0s"]).await;
    world.client().batch_execute("ALTER TABLE history DETACH PARTITION history_1").await.unwrap();
    assert_eq!(ranges(&world).await, "1-99 200-250");
    let output = Process::start(&world, "consumer", &["new", "--from", "start"]).fail(1).await;
    assert!(output.contains("cannot begin at offset 1"), "{output}");
    // The history goes on.
    carry(&world, 250, "old").await;
    archive(&world).await;
    assert_eq!(ranges(&world).await, "1-99 200-500");
    assert_eq!(world.number(parts).await, 6);
}

#[tokio::test]
async fn a_consumer_keeps_its_fold() {
    let world = World::new().await;
    carry(&world, 5, "old").await;
    archive(&world).await;
    let output = Process::start(&world, "consumer", &["history"]).fail(2).await;
    assert!(output.contains("consumer history is registered with fold history version 1"), "{output}");
    assert!(output.contains("start it with --fold history"), "{output}");
    let output = Process::start(&world, "consumer", &["old", "--fold", "history"]).fail(2).await;
    assert!(output.contains("start it with --fold distance"), "{output}");
    let output = Process::start(&world, "consumer", &["x", "--fold", "speed"]).fail(2).await;
    assert!(output.contains("there is no fold \"speed\": give one of distance, history, receipts"), "{output}");
    let output = Process::start(&world, "consumer", &["x", "--from", "retained"]).fail(1).await;
    assert!(output.contains("the state of fold distance version 1 would lack the reaped records"), "{output}");
    let copy = ["x", "--fold", "distance", "--copy-from", "history"];
    let output = Process::start(&world, "consumer", &copy).fail(1).await;
    assert!(output.contains("consumer \"history\" has fold history, and not distance"), "{output}");
    let output = Process::start(&world, "consumer", &["history2", "--copy-from", "history"]).succeed().await;
    assert!(output.contains("at offset 5"), "{output}");
    carry(&world, 5, "old").await;
    Process::start(&world, "consumer", &["history2", "--fold", "history", "--drain"]).succeed().await;
    archive(&world).await;
    assert_eq!(ranges(&world).await, "1-10", "two history consumers write the same rows");
    assert_eq!(world.number("SELECT count(*) FROM history").await, 10);
}

#[tokio::test]
async fn a_baseline_of_another_version_is_built_anew_when_its_owner_deletes_it() {
    let world = World::new().await;
    carry(&world, 20, "old").await;
    archive(&world).await;
    reap(&world, &["--keep", "0s"]).await;
    let older = "UPDATE checkpoints SET fold_version = 0, state = '{\"of\":\"another shape\"}' WHERE fold = 'distance'";
    world.client().batch_execute(older).await.unwrap();
    let output = Process::start(&world, "consumer", &["old"]).fail(2).await;
    assert!(output.contains("fold distance version 0, and this program has version 1"), "{output}");
    Process::start(&world, "consumer", &["old", "--unregister"]).succeed().await;
    world.write_rides(10).await;
    world.drain_streamer(&mut world.streamer()).await;
    archive(&world).await;
    let output = Process::start(&world, "reaper", &["--once", "--keep", "0s"]).fail(1).await;
    let advice = "`DELETE FROM checkpoints WHERE is_baseline AND partition = 0`";
    assert!(output.contains("the baseline has another fold") && output.contains(advice), "{output}");
    assert_eq!(world.number("SELECT count(*) FROM staged_log_records").await, 10);
    world.client().batch_execute("DELETE FROM checkpoints WHERE is_baseline").await.unwrap();
    assert_eq!(reap(&world, &["--keep", "0s"]).await.record_count, 10, "the history has what was reaped before");
    world.assert_converged(&["baseline"]).await;
}

/// The log went back, for example by a restore of some of its tables, and the history did not.
#[tokio::test]
async fn a_record_of_another_past_is_not_taken_for_the_logs() {
    let world = World::new().await;
    let of_another_past = "INSERT INTO history SELECT 0, n, 'ride', 'create', '{}', now() FROM generate_series(3, 5) n";
    carry(&world, 2, "old").await;
    archive(&world).await;
    world.client().batch_execute(of_another_past).await.unwrap();
    let output = Process::start(&world, "doctor", &[]).fail(1).await;
    assert!(output.contains("it ends at offset 5, and the head of the log is 2"), "{output}");
    carry(&world, 10, "old").await;
    let mut history = Process::start(&world, "consumer", &["history", "--fold", "history"]);
    history.wait_for("the history has another record at one of these offsets").await;
    assert_eq!(world.number("SELECT last_offset FROM checkpoints WHERE name = 'history'").await, 2);
    world.client().batch_execute("DELETE FROM history WHERE record_offset > 2").await.unwrap();
    wait_until("it goes on by itself", async || ranges(&world).await == "1-12").await;
    history.stop().await;
}

/// A statement that was planned while the table was empty could read all of it for each record.
#[tokio::test]
async fn archiving_reads_no_other_records() {
    let world = World::new().await;
    carry(&world, 3_000, "old").await;
    archive(&world).await;
    let of = "FROM pg_stat_user_tables WHERE relname = 'history_0'";
    wait_until("the rows are counted", async || world.number(&format!("SELECT n_tup_ins {of}")).await == 3_000).await;
    let read_count = world.number(&format!("SELECT seq_tup_read + idx_tup_fetch {of}")).await;
    assert!(read_count < 100, "{read_count} rows were read");
}
