//! Batches: every committed record gets exactly one offset and keeps it, whatever the writers do (I2, I3).

use std::collections::BTreeSet;
use std::time::Duration;

use deadpool_postgres::ClientWrapper as Client;
use futures_util::future::join_all;
use pglog::{Cut, Cutter, Partition, Reader};
use proptest::prelude::*;
use tests::{ReadRecord, World, write_rides};

/// One step of a writer in a transaction.
#[derive(Debug, Clone)]
enum Step {
    Stage,
    StageInSavepoint,
    StageAndRollBackToSavepoint,
    Pause,
}

#[derive(Debug, Clone)]
struct Transaction {
    steps: Vec<Step>,
    commits: bool,
}

fn transactions() -> impl Strategy<Value = Vec<Transaction>> {
    let step = prop_oneof![
        4 => Just(Step::Stage),
        2 => Just(Step::StageInSavepoint),
        2 => Just(Step::StageAndRollBackToSavepoint),
        2 => Just(Step::Pause),
    ];
    let transaction = (prop::collection::vec(step, 1..6), prop::bool::weighted(0.8))
        .prop_map(|(steps, commits)| Transaction { steps, commits });
    prop::collection::vec(transaction, 5..25)
}

proptest! {
    // Each case is a few hundred transactions on a real server.
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 10, ..ProptestConfig::default() })]

    #[test]
    fn every_committed_record_has_one_offset_and_keeps_it(writers in prop::collection::vec(transactions(), 8)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(check(writers, 100_000));
    }

    #[test]
    fn parts_of_what_waits_are_batches_too(writers in prop::collection::vec(transactions(), 8)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(check(writers, 2));
    }
}

/// `batch_len_max` is the limit of a batch that is not of one transaction.
async fn check(scripts: Vec<Vec<Transaction>>, batch_len_max: i64) {
    let world = World::new().await;
    // This transaction writes before all others and commits after them.
    let mut straggler = world.connect().await;
    let straggler = straggler.transaction().await.unwrap();
    stage(&straggler, "straggler").await;
    let mut writers = tokio::task::JoinSet::new();
    for (writer, script) in scripts.into_iter().enumerate() {
        writers.spawn(run_writer(world.connect().await, writer, script));
    }
    // Batches are cut and read while the writers write, as the streamer does.
    let mut seen = Vec::new();
    let mut committed = BTreeSet::from(["straggler".to_owned()]);
    while let Some(ended) = next_or_cut(&world, &mut writers, &mut seen, batch_len_max).await {
        committed.extend(ended);
    }
    cut_and_read(&world, &mut seen, batch_len_max).await;
    straggler.commit().await.unwrap();
    cut_and_read(&world, &mut seen, batch_len_max).await;

    let offsets: Vec<i64> = seen.iter().map(|record| record.offset).collect();
    assert_eq!(offsets, (1..=committed.len() as i64).collect::<Vec<_>>(), "offsets are contiguous");
    let names: BTreeSet<String> = seen.iter().map(|record| record.data.trim_matches('"').to_owned()).collect();
    assert_eq!(names, committed, "each committed record is there, and no further record");
    assert_eq!(
        seen.last().unwrap().data,
        "\"straggler\"",
        "the straggler had the first id, and its offset is the last"
    );

    // Later reads, from any offset, return the same records at the same offsets.
    assert_eq!(world.read_from(1, 7).await, seen);
    for start in [2, seen.len() / 2, seen.len()].map(|start| start.max(1)) {
        assert_eq!(world.read_from(start as i64, 1000).await, seen[start - 1..], "from offset {start}");
    }
    assert_eq!(read_in_sql(&world, 5).await, seen.iter().map(|record| record.data.clone()).collect::<Vec<_>>());
    let late_only = "SELECT count(*) FROM log_batches WHERE fresh_first_id IS NULL";
    assert!(world.number(late_only).await >= 1, "the straggler's batch holds late rows only");
}

/// The names that the next finished writer has committed; `None` when all have finished. Meanwhile it cuts batches.
async fn next_or_cut(
    world: &World,
    writers: &mut tokio::task::JoinSet<Vec<String>>,
    seen: &mut Vec<ReadRecord>,
    batch_len_max: i64,
) -> Option<Vec<String>> {
    loop {
        if let Some(ended) = writers.try_join_next() {
            return Some(ended.unwrap());
        }
        if writers.is_empty() {
            return None;
        }
        cut_and_read(world, seen, batch_len_max).await;
    }
}

/// The data of all records, as the function for readers in other languages returns them.
async fn read_in_sql(world: &World, page_len: i64) -> Vec<String> {
    let mut data: Vec<String> = Vec::new();
    loop {
        let query = "SELECT record_offset, data::text FROM log_records_after($1, $2)";
        let rows = world.client().query(query, &[&(data.len() as i64), &page_len]).await.unwrap();
        if rows.is_empty() {
            return data;
        }
        for row in &rows {
            assert_eq!(row.get::<_, i64>(0), data.len() as i64 + 1);
            data.push(row.get(1));
        }
    }
}

/// Cuts batches until nothing is left, and reads them.
async fn cut_and_read(world: &World, seen: &mut Vec<ReadRecord>, batch_len_max: i64) {
    let mut cutter = Cutter::with_limit(Partition::FIRST, batch_len_max);
    loop {
        // The statement that cuts a batch also reads it if it is small, and most of these batches are.
        let (batch, page) = match cutter.cut(world.client(), rand::random(), 10).await.unwrap() {
            Cut::Nothing => return,
            Cut::Counting => continue,
            Cut::Batch(batch, page) => (batch, page),
        };
        assert_eq!(batch.first_offset, seen.len() as i64 + 1);
        let mut reader = Reader::at(world.client(), Partition::FIRST, batch.first_offset).await.unwrap();
        let mut read = Vec::new();
        while reader.next_offset() <= batch.last_offset() {
            let page = reader.next_page(world.client(), 3).await.unwrap();
            assert!(!page.is_empty());
            read.extend(page.records().map(ReadRecord::from));
        }
        assert_eq!(read.len() as i64, batch.record_count);
        if let Some(page) = page {
            let at_once: Vec<ReadRecord> = page.records().map(ReadRecord::from).collect();
            assert_eq!(at_once, read, "both reads return the same records");
        }
        seen.extend(read);
    }
}

/// Runs a writer's transactions. Returns the names of its committed records.
async fn run_writer(mut client: Client, writer: usize, script: Vec<Transaction>) -> Vec<String> {
    let mut committed = Vec::new();
    for (number, transaction) in script.into_iter().enumerate() {
        let mut tx = client.transaction().await.unwrap();
        let mut names = Vec::new();
        for (place, step) in transaction.steps.into_iter().enumerate() {
            let name = format!("{writer}.{number}.{place}");
            match step {
                Step::Stage => {
                    stage(&tx, &name).await;
                    names.push(name);
                }
                Step::StageInSavepoint => {
                    let savepoint = tx.transaction().await.unwrap();
                    stage(&savepoint, &name).await;
                    savepoint.commit().await.unwrap();
                    names.push(name);
                }
                Step::StageAndRollBackToSavepoint => {
                    let savepoint = tx.transaction().await.unwrap();
                    stage(&savepoint, &name).await;
                    savepoint.rollback().await.unwrap();
                }
                // This is no wait for a condition: the transaction stays open while other transactions commit.
                Step::Pause => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
        if transaction.commits {
            tx.commit().await.unwrap();
            committed.append(&mut names);
        } else {
            tx.rollback().await.unwrap();
        }
    }
    committed
}

async fn stage(client: &impl pglog::Session, name: &str) {
    let data = format!("\"{name}\"");
    let record = pglog::NewRecord { key: "", object: "thing", action: "create", data: &data, traceparent: None };
    pglog::stage(client, record).await.unwrap();
}

#[tokio::test]
async fn a_record_staged_after_another_was_committed_comes_after_it() {
    let world = World::new().await;
    let mut late = world.connect().await;
    // It gets its transaction id before the cause is staged, and stages the effect after the cause has committed.
    let late = late.transaction().await.unwrap();
    late.execute("SELECT pg_current_xact_id()", &[]).await.unwrap();
    stage(world.client(), "cause").await;
    stage(&late, "effect").await;
    late.commit().await.unwrap();
    pglog::assign(world.client(), pglog::Partition::FIRST, 1).await.unwrap();
    let order: Vec<String> = world.read_from(1, 10).await.into_iter().map(|record| record.data).collect();
    assert_eq!(order, ["\"cause\"", "\"effect\""]);
}

#[tokio::test]
async fn two_leaders_cut_each_batch_once() {
    let world = World::new().await;
    let others: Vec<Client> = [world.connect().await, world.connect().await, world.connect().await].into();
    for _ in 0..30 {
        world.write_rides(1).await;
        let cuts = others.iter().map(|client| pglog::assign(client, pglog::Partition::FIRST, 1));
        let mut cut_count = 0;
        for batch in join_all(cuts).await {
            cut_count += usize::from(batch.unwrap().is_some());
        }
        assert_eq!(cut_count, 1, "exactly one client cut the batch");
    }
    assert_eq!(pglog::head(world.client(), pglog::Partition::FIRST).await.unwrap(), 30);
}

#[tokio::test]
async fn staged_records_cannot_be_changed() {
    let world = World::new().await;
    world.write_rides(1).await;
    let error = world.client().execute("UPDATE staged_log_records SET data = '{}'", &[]).await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("never updated"), "{error:?}");
}

#[tokio::test]
async fn rows_deleted_by_hand_are_an_error_and_never_a_shifted_offset() {
    let world = World::new().await;
    world.write_rides(10).await;
    pglog::assign(world.client(), pglog::Partition::FIRST, 1).await.unwrap();
    world.client().execute("DELETE FROM staged_log_records WHERE id = 4", &[]).await.unwrap();
    let mut reader = Reader::at(world.client(), pglog::Partition::FIRST, 1).await.unwrap();
    let error = reader.next_page(world.client(), 100).await.unwrap_err();
    assert!(matches!(error, pglog::Error::RowsMissing { record_count: 10, found_count: 9, .. }), "{error}");
}

#[tokio::test]
async fn tables_copied_from_a_younger_cluster_are_refused() {
    let world = World::new().await;
    world.write_rides(1).await;
    pglog::assign(world.client(), pglog::Partition::FIRST, 1).await.unwrap();
    // The state of a dump that was restored into an older physical copy of its own cluster: the identity is right, but the
    // snapshots name transaction ids that this copy has not reached.
    world.client().execute("UPDATE log_batches SET snapshot = '9000000000:9000000000:'", &[]).await.unwrap();
    world.write_rides(1).await;
    let error = pglog::assign(world.client(), pglog::Partition::FIRST, 1).await.unwrap_err();
    assert!(matches!(error, pglog::Error::TransactionsStartedOver { .. }), "{error}");
}

#[tokio::test]
async fn cutting_a_batch_reads_no_records_of_those_before() {
    let world = World::new().await;
    let (mut cutter, mut held) = (world.connect().await, world.connect().await);
    pglog::prepare_session(&cutter).await.unwrap();
    // The statements are planned now, while the tables are empty, and the plans are kept.
    assert!(pglog::assign(&cutter, pglog::Partition::FIRST, 1).await.unwrap().is_none());
    assert!(!pglog::is_anything_staged(&cutter, pglog::Partition::FIRST).await.unwrap());
    let in_flight = held.transaction().await.unwrap();
    write_rides(&in_flight, 1).await;
    world.write_rides(5000).await;
    pglog::assign(&cutter, pglog::Partition::FIRST, 2).await.unwrap().unwrap();
    world.write_rides(1).await;
    let tx = cutter.transaction().await.unwrap();
    let read_before = rows_read(&tx).await;
    assert!(pglog::is_anything_staged(&tx, pglog::Partition::FIRST).await.unwrap());
    pglog::assign(&tx, pglog::Partition::FIRST, 3).await.unwrap().unwrap();
    assert!(!pglog::is_anything_staged(&tx, pglog::Partition::FIRST).await.unwrap());
    let read_count = rows_read(&tx).await - read_before;
    assert!(read_count < 10, "{read_count} rows were read for one");
}

/// The number of staged rows that this session has read in its transaction.
async fn rows_read(tx: &deadpool_postgres::Transaction<'_>) -> i64 {
    let read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'staged_log_records'";
    tx.query_one(read, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn the_schema_can_be_applied_again_without_harm() {
    let world = World::new().await;
    world.write_rides(3).await;
    launcher::apply_schema(world.client()).await.unwrap();
    launcher::apply_schema(world.client()).await.unwrap();
    assert_eq!(world.sql_totals().await.0, 3);
    assert_eq!(world.number("SELECT count(*) FROM staged_log_records").await, 3);
}

#[tokio::test]
async fn a_plain_insert_stages_a_record() {
    let world = World::new().await;
    let insert = "INSERT INTO staged_log_records (object, action, data) VALUES ('ride', 'create', '{\"id\":1,\"distance_mm\":5}')";
    world.client().batch_execute(insert).await.unwrap();
    assert_eq!(world.drain_streamer(&mut world.streamer()).await, (1, 0));
    assert_eq!(world.drain_consumer(&mut world.consumer("consumer0")).await.applied_count, 1);
}

#[tokio::test]
async fn what_cannot_be_staged_is_refused_with_a_reason() {
    let world = World::new().await;
    let long = "x".repeat(101);
    let huge = format!("\"{}\"", "x".repeat(65_536));
    let no_trace = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
    for (object, action, data, complaint) in [
        ("", "create", "{}", "staged_log_records_object_not_empty"),
        ("ride", "", "{}", "staged_log_records_action_not_empty"),
        (long.as_str(), "create", "{}", "too long for type character varying(100)"),
        ("ride", long.as_str(), "{}", "too long for type character varying(100)"),
        ("ride", "create", huge.as_str(), "staged_log_records_data_size"),
        ("ride", "create", "{", "invalid input syntax for type json"),
    ] {
        let record = pglog::NewRecord { key: "", object, action, data, traceparent: None };
        let error = pglog::stage(world.client(), record).await.unwrap_err();
        let message = error.as_db_error().unwrap().message().to_owned();
        assert!(message.contains(complaint), "{message}");
    }
    for traceparent in [no_trace, &no_trace.to_uppercase(), "", "00-1-2-01", &format!("{no_trace}\n")] {
        let record =
            pglog::NewRecord { key: "", object: "ride", action: "create", data: "{}", traceparent: Some(traceparent) };
        let error = pglog::stage(world.client(), record).await.unwrap_err();
        assert_eq!(error.as_db_error().unwrap().constraint(), Some("staged_log_records_traceparent_w3c"));
    }
}
