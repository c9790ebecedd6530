//! A reader of the whole log returns each record at its offset, whether it is retained or reaped, and tells each record that
//! is neither retained nor archived (I2).

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use deadpool_postgres::ClientWrapper as Client;
use pglog::{Error, Partition, Reader, Session, WholeReader, history_page};
use tests::{ReadRecord, World};
use tokio::sync::Mutex;

const FIRST: Partition = Partition::FIRST;

/// Stages a batch for each of these numbers, in one partition. Every second record has a trace.
async fn fill(world: &World, partition: Partition, record_counts: &[i64]) {
    for (number, record_count) in record_counts.iter().enumerate() {
        let insert = "INSERT INTO staged_log_records (partition, object, action, data, traceparent)
                      SELECT $1, 'thing', 'create', format('{\"n\": %s}', n)::json,
                             CASE n % 2 WHEN 1 THEN '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01' END
                      FROM generate_series(1, $2::bigint) AS n";
        world.client().execute(insert, &[&partition, record_count]).await.unwrap();
        pglog::assign(world.client(), partition, number as i64 + 1).await.unwrap().expect("records are staged");
    }
}

/// Reads retained records and writes these offsets of them into the history, as a consumer does.
async fn archive(client: &Client, partition: Partition, offsets: std::ops::RangeInclusive<i64>) {
    let make_parts = "SELECT make_history_parts($1, $2, $3)";
    client.execute(make_parts, &[&partition, offsets.start(), offsets.end()]).await.unwrap();
    let mut reader = Reader::at(client, partition, *offsets.start()).await.unwrap();
    while reader.next_offset() <= *offsets.end() {
        let page = reader.next_page(client, offsets.end() - reader.next_offset() + 1).await.unwrap();
        for record in page.records() {
            let staged_at = UNIX_EPOCH + Duration::from_micros(record.staged_at_us as u64);
            let insert = "INSERT INTO history (partition, record_offset, object, action, data, staged_at, traceparent)
                          VALUES ($1, $2, $3, $4, $5::text::json, $6, $7)";
            let (object, action, data) = (record.object, record.action, record.data);
            let row: pglog::Params<'_> =
                &[&partition, &record.offset, &object, &action, &data, &staged_at, &record.traceparent];
            client.execute(insert, row).await.unwrap();
        }
    }
}

/// Reaps the batches that end at this offset or before it.
async fn reap_to(world: &World, partition: Partition, last_offset: i64) {
    let pass = "INSERT INTO checkpoints (name, partition, last_offset, is_baseline)
                VALUES ('consumer', $1, $2, false), ('baseline', $1, $2, true)
                ON CONFLICT (name, partition) DO UPDATE SET last_offset = EXCLUDED.last_offset";
    world.client().execute(pass, &[&partition, &last_offset]).await.unwrap();
    let counts = pglog::reap(&mut world.connect().await, partition, Duration::ZERO).await.unwrap();
    assert!(counts.record_count > 0, "records are reaped");
}

/// The records of all pages up to the head or the first error. Asserts that the pages join without a gap.
async fn read_with(reader: &mut WholeReader, client: &impl Session, len_max: i64) -> (Vec<ReadRecord>, Option<Error>) {
    let mut records = Vec::new();
    loop {
        let next_offset = reader.next_offset();
        match reader.next_page(client, len_max).await {
            Ok(page) if page.is_empty() => return (records, None),
            Ok(page) => {
                assert!(page.len() as i64 <= len_max);
                let offsets: Vec<i64> = page.records().map(|record| record.offset).collect();
                assert_eq!(offsets, (next_offset..reader.next_offset()).collect::<Vec<_>>());
                records.extend(page.records().map(ReadRecord::from));
            }
            Err(error) => {
                assert_eq!(reader.next_offset(), next_offset, "the reader keeps its position");
                return (records, Some(error));
            }
        }
    }
}

/// As [`read_with`], from an offset on. Asserts that the function in SQL returns the same records, and the same error.
async fn read(world: &World, partition: Partition, offset: i64, len_max: i64) -> (Vec<ReadRecord>, Option<Error>) {
    let mut reader = WholeReader::at(partition, offset);
    let (records, error) = read_with(&mut reader, world.client(), len_max).await;
    let query = "SELECT record_offset, object, action, data::text, (extract(epoch FROM staged_at) * 1000000)::bigint
                 FROM log_records_after($1, $2, $3)";
    let mut rows = Vec::new();
    let sql_error = loop {
        let passed = offset - 1 + rows.len() as i64;
        match world.client().query(query, &[&passed, &len_max, &partition]).await {
            Ok(page) if page.is_empty() => break None,
            Ok(page) => rows.extend(page),
            Err(error) => break Some(error.as_db_error().unwrap().message().to_owned()),
        }
    };
    assert_eq!(rows.len(), records.len());
    for (row, record) in rows.iter().zip(&records) {
        let texts: (&str, &str, &str) = (row.get(1), row.get(2), row.get(3));
        assert_eq!((row.get(0), texts.0, texts.1), (record.offset, &*record.object, &*record.action));
        assert_eq!((texts.2, row.get(4)), (&*record.data, record.staged_at_us));
    }
    let is_cut = world.number("SELECT log_partitions()::bigint").await > 1;
    let of = if is_cut { format!(" of partition {partition}") } else { String::new() };
    let missing = |offset| format!("the record at offset {offset}{of} is reaped, and the history does not have it");
    assert_eq!(sql_error, error.as_ref().map(|_| missing(reader.next_offset())));
    (records, error)
}

/// The records with other tokens: those of archived records are 0.
fn archived(records: &[ReadRecord]) -> Vec<ReadRecord> {
    records.iter().map(|record| ReadRecord { token: 0, ..record.clone() }).collect()
}

/// Asserts that the history lacks the record at `offset`, and that the error says so.
fn assert_lost(error: Option<Error>, offset: i64) {
    let error = error.expect("a record is lost");
    assert!(error.to_string().contains("The history does not have it"), "{error}");
    assert!(matches!(error, Error::Reaped { offset: lost, is_archive_read: true, .. } if lost == offset), "{error}");
}

#[tokio::test]
async fn what_is_reaped_is_read_from_the_history_and_what_comes_later_from_the_batches() {
    let world = World::new().await;
    fill(&world, FIRST, &[5, 1, 9]).await;
    let before = world.read_from(1, 100).await;
    archive(world.client(), FIRST, 1..=15).await;
    reap_to(&world, FIRST, 15).await;
    assert_eq!(world.number("SELECT count(*) FROM staged_log_records").await, 0);
    for len_max in [1, 4, 15, 100] {
        for offset in [1, 2, 6, 15, 16] {
            let (records, error) = read(&world, FIRST, offset, len_max).await;
            assert!(error.is_none(), "{error:?}");
            assert_eq!(records, archived(&before[offset as usize - 1..]), "from {offset}, {len_max} at once");
        }
    }
    let mut reader = WholeReader::at(FIRST, 1);
    read_with(&mut reader, world.client(), 100).await;
    fill(&world, FIRST, &[3]).await;
    let (later, error) = read_with(&mut reader, world.client(), 2).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(later, world.read_from(16, 100).await, "with their tokens");
    let plain = Reader::at(world.client(), FIRST, 1).await.unwrap_err();
    assert!(matches!(plain, Error::Reaped { offset: 1, first_retained: 16, is_archive_read: false, .. }), "{plain}");
}

#[tokio::test]
async fn a_log_that_is_reaped_in_part_is_read_from_both() {
    let world = World::new().await;
    fill(&world, FIRST, &[5, 3, 7]).await;
    let before = world.read_from(1, 100).await;
    // The history is in the middle of the third batch.
    archive(world.client(), FIRST, 1..=10).await;
    reap_to(&world, FIRST, 8).await;
    for len_max in [1, 3, 100] {
        let (records, error) = read(&world, FIRST, 1, len_max).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(records[..10], archived(&before[..10]));
        assert_eq!(records[10..], before[10..], "with their tokens");
        assert_eq!(read(&world, FIRST, 9, len_max).await.0, before[8..], "what is retained has its token");
    }
}

#[tokio::test]
async fn a_gap_in_the_history_is_told_and_never_read_over() {
    let world = World::new().await;
    fill(&world, FIRST, &[5, 5, 5]).await;
    let before = world.read_from(1, 100).await;
    // The history began late, and was not written for a while.
    archive(world.client(), FIRST, 3..=4).await;
    archive(world.client(), FIRST, 8..=15).await;
    reap_to(&world, FIRST, 5).await;
    for len_max in [1, 100] {
        for (offset, lost) in [(1, 1), (2, 2), (3, 5), (5, 5)] {
            let (records, error) = read(&world, FIRST, offset, len_max).await;
            assert_eq!(records, archived(&before[offset as usize - 1..lost as usize - 1]));
            assert_lost(error, lost);
        }
        // The records of the second gap are retained.
        let (records, error) = read(&world, FIRST, 6, len_max).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(archived(&records), archived(&before[5..]));
    }
    reap_to(&world, FIRST, 15).await;
    let (records, error) = read(&world, FIRST, 6, 100).await;
    assert_eq!(records, []);
    assert_lost(error, 6);
    assert_eq!(read(&world, FIRST, 8, 3).await.0, archived(&before[7..]));
    let pages = [(2, 100, 0), (3, 100, 2), (4, 100, 1), (8, 3, 3), (14, 100, 2), (16, 100, 0), (i64::MAX, 100, 0)];
    for (offset, len_max, len) in pages {
        assert_eq!(history_page(world.client(), FIRST, offset, len_max).await.unwrap().len(), len, "from {offset}");
    }
}

#[tokio::test]
async fn a_part_of_the_history_that_is_detached_is_told() {
    let world = World::new().await;
    let short_parts =
        "CREATE OR REPLACE FUNCTION history_part_len() RETURNS BIGINT LANGUAGE sql IMMUTABLE AS 'SELECT 10::bigint'";
    world.client().batch_execute(short_parts).await.unwrap();
    fill(&world, FIRST, &[25, 10]).await;
    let before = world.read_from(1, 100).await;
    archive(world.client(), FIRST, 1..=35).await;
    reap_to(&world, FIRST, 25).await;
    assert_eq!(read(&world, FIRST, 1, 7).await.0, archived(&before), "pages go on from part to part");
    world.client().batch_execute("ALTER TABLE history DETACH PARTITION history_1").await.unwrap();
    let (records, error) = read(&world, FIRST, 1, 7).await;
    assert_eq!(records, archived(&before[..9]));
    assert_lost(error, 10);
    assert_eq!(read(&world, FIRST, 20, 100).await.0, archived(&before[19..]));
    // The part of retained records.
    world.client().batch_execute("ALTER TABLE history DETACH PARTITION history_3").await.unwrap();
    let (records, error) = read(&world, FIRST, 20, 7).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!((&records[..10], &records[10..]), (&archived(&before[19..29])[..], &before[29..]));
}

#[tokio::test]
async fn each_partition_has_its_own_history() {
    let world = World::cut(8).await;
    let (third, empty) = (Partition::new(3).unwrap(), Partition::new(7).unwrap());
    fill(&world, FIRST, &[4, 4]).await;
    fill(&world, third, &[2, 6]).await;
    archive(world.client(), FIRST, 1..=8).await;
    archive(world.client(), third, 3..=8).await;
    reap_to(&world, FIRST, 8).await;
    let retained = read(&world, third, 1, 100).await.0;
    assert_eq!(retained.len(), 8);
    reap_to(&world, third, 2).await;
    assert_eq!(read(&world, FIRST, 1, 3).await.0.len(), 8);
    assert_lost(read(&world, third, 1, 3).await.1, 1);
    assert_eq!(read(&world, third, 3, 100).await.0, retained[2..]);
    let (records, error) = read(&world, empty, 1, 3).await;
    assert!(records.is_empty() && error.is_none(), "{error:?}");
    for (partition, offset, head) in [(FIRST, 10, 8), (FIRST, i64::MAX, 8), (third, 10, 8), (empty, 2, 0)] {
        let error = WholeReader::at(partition, offset).next_page(world.client(), 3).await.unwrap_err();
        assert!(matches!(error, Error::Unassigned { head: found, .. } if found == head), "{error}");
    }
}

pub type Action<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Counts the statements, and runs an action before the first of this name.
pub struct Watched<'a> {
    client: &'a Client,
    statement: &'a str,
    action: Mutex<Option<Action<'a>>>,
    pub statement_count: AtomicUsize,
}

impl<'a> Watched<'a> {
    pub fn new(client: &'a Client, statement: &'a str, action: Option<Action<'a>>) -> Self {
        Self { client, statement, action: Mutex::new(action), statement_count: AtomicUsize::new(0) }
    }
}

impl Session for Watched<'_> {
    type Client = tokio_postgres::Client;

    fn client(&self) -> &Self::Client {
        self.client
    }

    async fn prepared(&self, sql: &str) -> Result<tokio_postgres::Statement, tokio_postgres::Error> {
        self.statement_count.fetch_add(1, Ordering::Relaxed);
        if sql.lines().next() == Some(self.statement)
            && let Some(action) = self.action.lock().await.take()
        {
            action.await;
        }
        self.client.prepared(sql).await
    }
}

#[tokio::test]
async fn a_batch_that_is_reaped_between_two_statements_is_read_to_its_end() {
    // The reader begins at a retained record, in the middle of a batch or not, or in the history.
    for start in [1, 8, 10] {
        for statement in ["-- pglog::history_page", "-- pglog::find_batch", "-- pglog::page"] {
            for pages_before in 0..4 {
                let world = World::new().await;
                fill(&world, FIRST, &[6, 8]).await;
                let before = world.read_from(1, 100).await;
                archive(world.client(), FIRST, 1..=9).await;
                reap_to(&world, FIRST, 6).await;
                let mut reader = WholeReader::at(FIRST, start);
                let mut records = Vec::new();
                for _ in 0..pages_before {
                    records.extend(reader.next_page(world.client(), 2).await.unwrap().records().map(ReadRecord::from));
                }
                let action: Action<'_> = Box::pin(async {
                    archive(&world.connect().await, FIRST, 10..=14).await;
                    reap_to(&world, FIRST, 14).await;
                });
                let session = Watched::new(world.client(), statement, Some(action));
                let (rest, error) = read_with(&mut reader, &session, 2).await;
                let case = format!("from {start}, {statement}, after {pages_before} pages");
                assert!(error.is_none(), "{case}: {error:?}");
                records.extend(rest);
                assert_eq!(archived(&records), archived(&before[start as usize - 1..]), "{case}");
            }
        }
    }
}

#[tokio::test]
async fn a_page_of_the_history_costs_one_statement() {
    let world = World::new().await;
    fill(&world, FIRST, &[50]).await;
    archive(world.client(), FIRST, 1..=50).await;
    reap_to(&world, FIRST, 50).await;
    let session = Watched::new(world.client(), "", None);
    let mut reader = WholeReader::at(FIRST, 1);
    reader.next_page(&session, 1).await.unwrap();
    let first_count = session.statement_count.swap(0, Ordering::Relaxed);
    assert!(first_count <= 3, "{first_count} statements find the history");
    while reader.next_offset() <= 50 {
        reader.next_page(&session, 1).await.unwrap();
    }
    assert_eq!(session.statement_count.swap(0, Ordering::Relaxed), 49);
    assert!(reader.next_page(&session, 1).await.unwrap().is_empty());
    session.statement_count.store(0, Ordering::Relaxed);
    assert!(reader.next_page(&session, 1).await.unwrap().is_empty());
    assert_eq!(session.statement_count.into_inner(), 1, "waiting at the head costs one statement");
}
