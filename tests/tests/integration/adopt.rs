//! Adopting a log in another cluster: the same records at the same offsets, to the byte, whatever state the log was in
//! when it was dumped (I2).

use pglog::Reader;
use tests::{PrivatePostgres, Process, ReadRecord, World, write_rides};

/// All records from `offset` on. Their tokens are set to 0, because a token changes with its batch.
async fn read_from(world: &World, offset: i64) -> Vec<ReadRecord> {
    let records = world.read_from(offset, 7).await;
    records.into_iter().map(|record| ReadRecord { token: 0, ..record }).collect()
}

/// A hash of all rows that `adopt` may write.
async fn fingerprint(world: &World) -> String {
    let query =
        "SELECT concat_ws(' ', (SELECT md5(string_agg(r::text, ',' ORDER BY r::text)) FROM staged_log_records r),
                                       (SELECT md5(string_agg(b::text, ',' ORDER BY b::text)) FROM log_batches b),
                                       (SELECT string_agg(i::text, ',') FROM log_identity i))";
    world.client().query_one(query, &[]).await.unwrap().get(0)
}

/// Writes rounds of rides with transactions that stay open across one or two batches. The last transaction commits after the
/// last batch: its records wait for their offsets, and have lower ids than records with an offset.
async fn write_with_stragglers(world: &World) {
    let (mut one, mut two) = (world.connect().await, world.connect().await);
    for _ in 0..6 {
        let (late, later) = (one.transaction().await.unwrap(), two.transaction().await.unwrap());
        write_rides(&late, 2).await;
        world.write_rides(3).await;
        write_rides(&later, 1).await;
        pglog::assign(world.client(), pglog::Partition::FIRST, 1).await.unwrap();
        world.write_rides(1).await;
        late.commit().await.unwrap();
        pglog::assign(world.client(), pglog::Partition::FIRST, 2).await.unwrap();
        later.commit().await.unwrap();
    }
    // JSON that must stay as it is, byte for byte.
    let odd = "INSERT INTO staged_log_records (partition, object, action, data, traceparent)
               VALUES (0, 'wallet', 'credit', '{\"a\" : 1.0,\"a\":1e3,  \"ü\":\"\\u00fc\"}',
                       '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01')";
    world.client().batch_execute(odd).await.unwrap();
}

/// The data of the records that are in no batch, in the order in which the next batch will have them.
async fn waiting(world: &World) -> Vec<String> {
    let rows = world
        .client()
        .query(
            "SELECT data::text FROM staged_log_records
             WHERE partition = 0 AND NOT pg_visible_in_snapshot(transaction_id, (
                 SELECT snapshot FROM log_batches WHERE partition = 0 ORDER BY first_offset DESC LIMIT 1))
             ORDER BY id",
            &[],
        )
        .await
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn an_adopted_log_has_every_record_at_its_offset() {
    let world = World::new().await;
    write_with_stragglers(&world).await;
    let (before, waiting_before) = (read_from(&world, 1).await, waiting(&world).await);
    assert!(waiting_before.len() == 2, "{waiting_before:?}");
    let cluster = PrivatePostgres::start().await;
    let restored = world.restored(&world.dump().await, &cluster).await;
    // Records staged after the restore. The last of them carry transaction ids that were in flight in old snapshots, which may
    // happen by coincidence.
    restored.write_rides(2).await;
    let coincidence = "INSERT INTO staged_log_records (transaction_id, object, action, data)
                       SELECT in_flight, 'test', 'new', '{}'
                       FROM (SELECT DISTINCT pg_snapshot_xip(snapshot) AS in_flight FROM log_batches) AS flights";
    assert!(restored.client().execute(coincidence, &[]).await.unwrap() > 1);
    let staged_after = "SELECT count(*) FROM staged_log_records WHERE partition = 0";
    let staged_count = restored.number(staged_after).await;
    let output = Process::start(&restored, "adopt", &[]).succeed().await;
    assert!(output.contains("partition 0: "), "{output}");
    assert_eq!(read_from(&restored, 1).await, before);
    for offset in 1..=before.len() as i64 {
        assert_eq!(read_from(&restored, offset).await, before[offset as usize - 1..], "from {offset} on");
    }
    assert_eq!(restored.number(staged_after).await, staged_count, "no record was removed");
    let waiting_after = waiting(&restored).await;
    assert_eq!(waiting_after[..2], waiting_before, "these records come first, in the same order");
    assert_eq!(waiting_after.len() as i64, staged_count - before.len() as i64);
    let output = Process::start(&restored, "adopt", &[]).succeed().await;
    assert!(output.contains("nothing to adopt"), "{output}");
    // The adopted log now works like any other log.
    pglog::prepare_session(restored.client()).await.unwrap();
    restored.write_rides(3).await;
    pglog::assign(restored.client(), pglog::Partition::FIRST, 3).await.unwrap().unwrap();
    let after = read_from(&restored, 1).await;
    assert_eq!(after[..before.len()], before);
    assert_eq!(after.len() as i64, staged_count + 3);
    let next: Vec<String> = after[before.len()..].iter().map(|record| record.data.clone()).collect();
    assert_eq!(next[..waiting_after.len()], waiting_after);
    // `adopt --force` in the log's own cluster changes no offset either.
    let output = Process::start(&restored, "adopt", &["--force"]).succeed().await;
    assert!(output.contains("are one batch now"), "{output}");
    assert_eq!(read_from(&restored, 1).await, after);
}

#[tokio::test]
async fn a_reaped_log_is_adopted_with_what_is_left_and_goes_on_being_reaped() {
    let world = World::new().await;
    write_with_stragglers(&world).await;
    let mut consumer = world.consumer("c0");
    pglog::assign(world.client(), pglog::Partition::FIRST, 3).await.unwrap();
    world.drain_consumer(&mut consumer).await;
    // The state after a reaper marked all batches but the last two, and was killed before it had deleted all rows.
    let mark = "UPDATE log_batches SET reaped_at = now()
                WHERE first_offset < (SELECT first_offset FROM log_batches ORDER BY 1 DESC OFFSET 1 LIMIT 1)";
    world.client().execute(mark, &[]).await.unwrap();
    world.client().execute("DELETE FROM staged_log_records WHERE partition = 0 AND id IN (1, 4)", &[]).await.unwrap();
    world.write_rides(4).await;
    let first_retained = pglog::first_retained(world.client(), pglog::Partition::FIRST).await.unwrap();
    let before = read_from(&world, first_retained).await;
    assert!(first_retained > 1 && !before.is_empty());
    let cluster = PrivatePostgres::start().await;
    let restored = world.restored(&world.dump().await, &cluster).await;
    restored.write_rides(2).await;
    let output = Process::start(&restored, "adopt", &[]).succeed().await;
    let leftover = format!("{} remains of reaped records were removed", first_retained - 3);
    assert!(output.contains(&leftover) && output.contains("; 6 staged records wait"), "{output}");
    assert_eq!(pglog::first_retained(restored.client(), pglog::Partition::FIRST).await.unwrap(), first_retained);
    assert_eq!(read_from(&restored, first_retained).await, before);
    let error = Reader::at(restored.client(), pglog::Partition::FIRST, first_retained - 1).await.unwrap_err();
    assert!(matches!(error, pglog::Error::Reaped { .. }), "{error}");
    // The reaper removes the passed records. It keeps waiting records and the next batch.
    for expected_count in [before.len() as u64, 6] {
        let output = Process::start(&restored, "reaper", &["--once", "--keep", "0s"]).succeed().await;
        assert!(output.contains(&format!("record_count={expected_count}")), "{output}");
        pglog::assign(restored.client(), pglog::Partition::FIRST, 4).await.unwrap();
        restored.drain_consumer(&mut restored.consumer("c0")).await;
    }
    restored.assert_converged(&["c0"]).await;
    assert_eq!(restored.number("SELECT count(*) FROM staged_log_records WHERE partition = 0").await, 0);
    // A log without records, which keeps only the offset at which it goes on.
    Process::start(&restored, "adopt", &["--force"]).succeed().await;
    restored.write_rides(5).await;
    pglog::assign(restored.client(), pglog::Partition::FIRST, 5).await.unwrap();
    restored.drain_consumer(&mut restored.consumer("c0")).await;
    restored.assert_converged(&["c0"]).await;
}

#[tokio::test]
async fn a_log_in_which_nothing_was_ever_assigned_is_adopted() {
    let world = World::new().await;
    let cluster = PrivatePostgres::start().await;
    world.write_rides(5).await;
    let restored = world.restored(&world.dump().await, &cluster).await;
    let output = Process::start(&restored, "adopt", &[]).succeed().await;
    assert!(output.contains("5 staged records wait for their offsets"), "{output}");
    restored.write_rides(5).await;
    restored.drain_streamer(&mut restored.streamer()).await;
    restored.drain_consumer(&mut restored.consumer("c0")).await;
    restored.assert_converged(&["c0"]).await;
    // An empty log.
    let empty = World::new().await;
    let restored = empty.restored(&empty.dump().await, &cluster).await;
    Process::start(&restored, "adopt", &[]).succeed().await;
    pglog::prepare_session(restored.client()).await.unwrap();
}

#[tokio::test]
async fn adopting_a_damaged_log_changes_nothing() {
    let world = World::new().await;
    write_with_stragglers(&world).await;
    let dump = world.dump().await;
    let cluster = PrivatePostgres::start().await;
    for (damage, complaint) in [
        ("DELETE FROM staged_log_records WHERE id = 10", "only"),
        ("DELETE FROM staged_log_records WHERE id = 1", "only"),
        ("DELETE FROM log_batches WHERE first_offset = 1", "the batch before offset"),
        ("UPDATE log_batches SET record_count = record_count + 1", "the batch before offset"),
        ("UPDATE log_batches SET reaped_at = now() WHERE first_offset > 1", "the batch before offset"),
    ] {
        let restored = world.restored(&dump, &cluster).await;
        restored.write_rides(3).await;
        restored.client().execute(damage, &[]).await.unwrap();
        let before = fingerprint(&restored).await;
        let output = Process::start(&restored, "adopt", &[]).fail(1).await;
        assert!(output.contains(complaint) && output.contains("nothing was changed"), "{damage}: {output}");
        assert_eq!(fingerprint(&restored).await, before, "{damage}");
    }
}

#[tokio::test]
async fn a_log_in_use_is_not_adopted() {
    let world = World::new().await;
    let mut streamer = world.streamer();
    world.write_rides(3).await;
    world.drain_streamer(&mut streamer).await;
    let output = Process::start(&world, "adopt", &["--force"]).fail(1).await;
    assert!(output.contains("a streamer leads partition 0"), "{output}");
    drop(streamer);
    let mut client = world.connect().await;
    let tx = client.transaction().await.unwrap();
    write_rides(tx.client(), 1).await;
    let output = Process::start(&world, "adopt", &["--force"]).fail(1).await;
    assert!(output.contains("the log is in use"), "{output}");
}

#[tokio::test]
async fn the_schema_applied_again_does_not_hide_that_the_log_came_from_elsewhere() {
    let world = World::new().await;
    world.client().execute("UPDATE log_identity SET system_identifier = 1", &[]).await.unwrap();
    launcher::apply_schema(world.client()).await.unwrap();
    let refused = async || pglog::prepare_session(world.client()).await.unwrap_err();
    assert!(matches!(refused().await, pglog::Error::OtherCluster { log_cluster: 1, .. }));
    Process::start(&world, "adopt", &[]).succeed().await;
    pglog::prepare_session(world.client()).await.unwrap();
    // The state after a data-only dump was restored into existing tables.
    let restore = "INSERT INTO log_identity (system_identifier, schema_version) VALUES (2, 3)";
    world.client().execute(restore, &[]).await.unwrap();
    assert!(matches!(refused().await, pglog::Error::OtherCluster { log_cluster: 2, .. }));
    for (found, hint) in [(1, "apply schema.sql"), (99, "upgrade the program")] {
        world.client().execute("UPDATE log_identity SET schema_version = $1", &[&found]).await.unwrap();
        let error = refused().await;
        assert!(matches!(error, pglog::Error::SchemaVersion { wanted: pglog::SCHEMA_VERSION, .. }), "{error}");
        assert!(error.to_string().contains(hint), "{error}");
        let output = Process::start(&world, "streamer", &[]).fail(1).await;
        assert!(output.contains(hint), "{output}");
    }
    // A schema from before the version number was introduced.
    world.client().batch_execute("DROP TABLE log_identity").await.unwrap();
    assert!(matches!(refused().await, pglog::Error::SchemaVersion { found: 1, .. }));
    launcher::apply_schema(world.client()).await.unwrap();
    pglog::prepare_session(world.client()).await.unwrap();
}

/// A reaper marked all batches and was killed before it deleted their rows. One row is of a transaction that was open when the
/// others were cut, and its id is higher than theirs.
async fn half_reap(world: &World) {
    let mut late = world.connect().await;
    let late = late.transaction().await.unwrap();
    write_rides(&late, 1).await;
    world.write_rides(2).await;
    pglog::assign(world.client(), pglog::Partition::FIRST, 1).await.unwrap().unwrap();
    write_rides(&late, 1).await;
    late.commit().await.unwrap();
    pglog::assign(world.client(), pglog::Partition::FIRST, 2).await.unwrap().unwrap();
    world.drain_consumer(&mut world.consumer("c0")).await;
    world.client().execute("UPDATE log_batches SET reaped_at = now()", &[]).await.unwrap();
    world.client().execute("DELETE FROM staged_log_records WHERE id = 2", &[]).await.unwrap();
}

/// The log goes on, and counts no record twice.
async fn assert_adopted(world: &World, output: &str) {
    assert!(output.contains("; 2 staged records wait for their offsets; 3 remains of reaped records"), "{output}");
    world.write_rides(2).await;
    world.drain_streamer(&mut world.streamer()).await;
    world.drain_consumer(&mut world.consumer("c0")).await;
    world.assert_converged(&["c0"]).await;
    assert_eq!(world.number("SELECT last_offset FROM checkpoints WHERE name = 'c0'").await, 8);
}

#[tokio::test]
async fn half_reaped_late_rows_are_known_in_every_cluster() {
    let cluster = PrivatePostgres::start().await;
    for case in ["the same cluster", "after pg_upgrade", "after a dump was restored"] {
        let mut world = World::new().await;
        half_reap(&world).await;
        let mut args: &[&str] = &[];
        match case {
            "the same cluster" => args = &["--force"],
            // Rows and transaction ids stay as they are, and the cluster has a new identifier.
            "after pg_upgrade" => {
                world.client().execute("UPDATE log_identity SET system_identifier = 1", &[]).await.unwrap();
            }
            _ => world = world.restored(&world.dump().await, &cluster).await,
        }
        world.write_rides(2).await;
        let output = Process::start(&world, "adopt", args).succeed().await;
        assert_adopted(&world, &output).await;
    }
}

#[tokio::test]
async fn late_rows_of_batches_from_before_version_6_are_named_and_not_guessed() {
    let world = World::new().await;
    half_reap(&world).await;
    world.client().execute("UPDATE log_batches SET last_id = NULL", &[]).await.unwrap();
    world.write_rides(2).await;
    let before = fingerprint(&world).await;
    let output = Process::start(&world, "adopt", &["--force"]).fail(1).await;
    assert!(output.contains("may belong to reaped batches, or to none: id 4. Look at them"), "{output}");
    assert_eq!(fingerprint(&world).await, before);
    world.client().execute("DELETE FROM staged_log_records WHERE id = 4", &[]).await.unwrap();
    let output = Process::start(&world, "adopt", &["--force"]).succeed().await;
    assert!(output.contains("; 2 staged records wait for their offsets; 2 remains"), "{output}");
}
