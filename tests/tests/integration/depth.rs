//! Depth has no cliff: however many records wait, and however deep in a batch a reader begins, each statement is bounded.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pglog::{Batch, Cut, Cutter, Partition, Reader};
use streamer::{Fault, Step};
use tests::{ReadRecord, World};

use crate::whole_reader::Watched;

const FIRST: Partition = Partition::FIRST;

/// Records of a transaction that one statement does not count.
const HUGE_LEN: i64 = 250_000;

/// Stages records with the numbers `numbers` as their data.
async fn stage(client: &tokio_postgres::Client, numbers: std::ops::RangeInclusive<i64>) {
    let stage = "INSERT INTO staged_log_records (object, action, data)
                 SELECT 'test', 'number', to_json(number) FROM generate_series($1::bigint, $2) AS number";
    client.execute(stage, &[numbers.start(), numbers.end()]).await.unwrap();
}

/// Cuts one batch. Returns it, and how often the cutter had to be called again.
async fn cut(world: &World, cutter: &mut Cutter) -> (Batch, usize) {
    let mut counting_count = 0;
    loop {
        match cutter.cut(world.client(), 1, 100).await.unwrap() {
            Cut::Batch(batch, _) => return (batch, counting_count),
            Cut::Counting => counting_count += 1,
            Cut::Nothing => panic!("nothing to cut"),
        }
    }
}

/// Reads a few records from `offset` on. Returns the number in the first one, and the number of statements.
async fn read_at(world: &World, offset: i64) -> (i64, usize) {
    let session = Watched::new(world.client(), "", None);
    let mut reader = Reader::at(&session, FIRST, offset).await.unwrap();
    let mut page = reader.next_page(&session, 5).await.unwrap();
    while page.is_empty() && reader.is_searching() {
        page = reader.next_page(&session, 5).await.unwrap();
    }
    let record = ReadRecord::from(page.records().next().unwrap());
    let in_sql = "SELECT data::text FROM log_records_after($1, 5)";
    let row = &world.client().query(in_sql, &[&(offset - 1)]).await.unwrap()[0];
    assert_eq!((record.offset, record.data.as_str()), (offset, row.get(0)));
    (record.data.parse().unwrap(), session.statement_count.into_inner())
}

#[tokio::test]
async fn what_waits_after_a_night_without_a_streamer_is_cut_in_bounded_batches() {
    let world = World::new().await;
    for part in 0..5 {
        stage(world.client(), part * 50_000 + 1..=(part + 1) * 50_000).await;
    }
    let mut cutter = Cutter::new(FIRST);
    for expected_len in [100_000, 100_000, 50_000] {
        let (batch, counting_count) = cut(&world, &mut cutter).await;
        assert_eq!((batch.record_count, counting_count), (expected_len, 0));
    }
    assert!(matches!(cutter.cut(world.client(), 1, 100).await.unwrap(), Cut::Nothing));
    for offset in [1, 99_999, 100_000, 100_001, 250_000] {
        assert_eq!(read_at(&world, offset).await.0, offset);
    }
}

#[tokio::test]
async fn a_huge_transaction_is_counted_in_steps_and_read_from_any_offset() {
    // It ends before the batch in which its first neighbours are, or after it. In both cases its ids are not contiguous.
    for is_late in [false, true] {
        let world = World::new().await;
        let mut huge = world.connect().await;
        let tx = huge.transaction().await.unwrap();
        stage(tx.client(), 1..=HUGE_LEN / 2).await;
        stage(world.client(), 1..=3).await;
        stage(tx.client(), HUGE_LEN / 2 + 1..=HUGE_LEN).await;
        let mut cutter = Cutter::new(FIRST);
        if is_late {
            assert_eq!(cut(&world, &mut cutter).await.0.record_count, 3);
        }
        tx.commit().await.unwrap();
        let (batch, counting_count) = cut(&world, &mut cutter).await;
        assert_eq!((batch.record_count, counting_count), (HUGE_LEN, 2), "late: {is_late}");
        if !is_late {
            assert_eq!(cut(&world, &mut cutter).await.0.record_count, 3);
        }
        for depth in [1, 99_999, 100_000, 100_001, 200_000, 200_001, HUGE_LEN] {
            let (number, statement_count) = read_at(&world, batch.first_offset + depth - 1).await;
            assert_eq!(number, depth, "late: {is_late}");
            assert!(statement_count <= 3, "{statement_count} statements for the record {depth}");
        }
        // A batch from before version 6.
        world.client().execute("UPDATE log_batches SET skip_ids = NULL", &[]).await.unwrap();
        let (number, statement_count) = read_at(&world, batch.last_offset()).await;
        assert_eq!(number, HUGE_LEN);
        assert!(statement_count <= 5, "{statement_count} statements skip a hundred thousand records each");
    }
}

#[tokio::test]
async fn a_search_that_takes_long_is_interrupted_and_goes_on() {
    let world = World::new().await;
    let mut huge = world.connect().await;
    let tx = huge.transaction().await.unwrap();
    stage(tx.client(), 1..=1).await;
    stage(world.client(), 1..=1).await;
    stage(tx.client(), 2..=HUGE_LEN).await;
    tx.commit().await.unwrap();
    let (batch, _) = cut(&world, &mut Cutter::new(FIRST)).await;
    world.client().execute("UPDATE log_batches SET skip_ids = NULL", &[]).await.unwrap();
    let slow = Box::pin(tokio::time::sleep(Duration::from_secs(3)));
    let session = Watched::new(world.client(), "-- pglog::skip", Some(slow));
    let mut reader = Reader::at(&session, FIRST, batch.last_offset()).await.unwrap();
    assert!(reader.next_page(&session, 5).await.unwrap().is_empty() && reader.is_searching());
    let page = reader.next_page(&session, 5).await.unwrap();
    assert_eq!(page.records().next().unwrap().data, HUGE_LEN.to_string());
    assert_eq!(session.statement_count.into_inner(), 5, "the second call goes on where the first one was");
}

#[tokio::test]
async fn in_a_batch_without_gaps_every_place_is_computed() {
    let world = World::new().await;
    stage(world.client(), 1..=HUGE_LEN).await;
    cut(&world, &mut Cutter::new(FIRST)).await;
    world.client().execute("UPDATE log_batches SET skip_ids = NULL", &[]).await.unwrap();
    let (number, statement_count) = read_at(&world, HUGE_LEN - 7).await;
    assert_eq!((number, statement_count), (HUGE_LEN - 7, 2));
}

#[tokio::test]
async fn ids_of_other_transactions_between_two_records_are_passed_in_steps() {
    let world = World::new().await;
    stage(world.client(), 1..=1).await;
    // As if a transaction that is still open had taken the ids in between.
    let take = "SELECT setval(pg_get_serial_sequence('staged_log_records', 'id'), 3500000)";
    world.client().execute(take, &[]).await.unwrap();
    stage(world.client(), 2..=3).await;
    let session = Watched::new(world.client(), "", None);
    let cut = Cutter::new(FIRST).cut(&session, 1, 100).await.unwrap();
    assert!(matches!(cut, Cut::Batch(_, None)), "the batch is not read by the statement that cuts it: {cut:?}");
    let mut reader = Reader::at(&session, FIRST, 1).await.unwrap();
    let mut read = Vec::new();
    while reader.next_offset() <= 3 {
        read.extend(reader.next_page(&session, 100).await.unwrap().records().map(|record| record.data.to_owned()));
    }
    assert_eq!(read, ["1", "2", "3"]);
    let statement_count = session.statement_count.load(Ordering::Relaxed);
    assert!((5..=7).contains(&statement_count), "{statement_count} statements look at a million ids each");
}

#[tokio::test]
async fn a_streamer_and_a_consumer_go_on_deep_in_a_huge_batch_of_an_older_version() {
    let world = World::new().await;
    let mut huge = world.connect().await;
    let tx = huge.transaction().await.unwrap();
    stage(tx.client(), 1..=HUGE_LEN / 2).await;
    world.write_rides(3).await;
    stage(tx.client(), HUGE_LEN / 2 + 1..=HUGE_LEN).await;
    tx.commit().await.unwrap();
    let mut consumer = world.consumer("c0");
    world.drain_consumer(&mut consumer).await;
    let mut streamer = world.streamer();
    while !matches!(streamer.run_once(Fault::None).await.unwrap(), Step::Published(_)) {}
    world.client().execute("UPDATE log_batches SET skip_ids = NULL", &[]).await.unwrap();
    drop(streamer);
    // Both begin anew, at the stream's end and at the checkpoint.
    let end = HUGE_LEN - 1_000;
    let entry = ["about", "1 1 4 ride create", "data", "{}"];
    let mut redis = world.redis().await;
    redis::cmd("DEL").arg(world.stream_name()).exec_async(&mut redis).await.unwrap();
    redis::cmd("XADD")
        .arg(world.stream_name())
        .arg(format!("{end}-0"))
        .arg(&entry)
        .exec_async(&mut redis)
        .await
        .unwrap();
    redis::cmd("XTRIM").arg(world.stream_name()).arg(&["MAXLEN", "0"]).exec_async(&mut redis).await.unwrap();
    world.client().execute("UPDATE checkpoints SET last_offset = $1", &[&(end - 100)]).await.unwrap();
    let mut streamer = world.streamer();
    assert_eq!(world.drain_streamer(&mut streamer).await, (1_003, 0));
    world.drain_consumer(&mut world.consumer("c0")).await;
    world.assert_converged(&["c0"]).await;
}

#[tokio::test]
async fn the_rows_of_an_open_transaction_are_not_looked_at() {
    let world = World::new().await;
    let mut open = world.connect().await;
    let tx = open.transaction().await.unwrap();
    stage(tx.client(), 1..=20_000).await;
    stage(world.client(), 1..=1).await;
    let mut cutter = Cutter::new(FIRST);
    // The first cut sees that it is open. The following ones know.
    cut(&world, &mut cutter).await;
    stage(world.client(), 2..=2).await;
    let before = entries_read(&world).await;
    cut(&world, &mut cutter).await;
    assert!(matches!(cutter.cut(world.client(), 1, 100).await.unwrap(), Cut::Nothing));
    assert!(!pglog::is_anything_staged(world.client(), FIRST).await.unwrap());
    let read_count = entries_read(&world).await - before;
    assert!(read_count < 100, "{read_count} entries of indexes were read for one record");
}

/// The number of entries that have been read in the indexes of staged records.
pub async fn entries_read(world: &World) -> i64 {
    world.client().execute("SELECT pg_stat_force_next_flush()", &[]).await.unwrap();
    let read = "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relname = 'staged_log_records'";
    world.number(read).await
}
