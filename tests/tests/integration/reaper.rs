//! The reaper removes records that every consumer has passed, and nothing else (I8).

use std::time::Duration;

use clap::Parser;
use common::shutdown::CancellationToken;
use deadpool_postgres::ClientWrapper;
use reaper::Cleaned;
use tests::{Process, World};

use crate::depth::entries_read;

pub async fn reap(world: &World, args: &[&str]) -> Cleaned {
    let args = ["reaper"].into_iter().chain(args.iter().copied()).map(str::to_owned);
    let config = reaper::Config::parse_from(args.chain(world.flags("reaper")));
    reaper::run_once(&config, &CancellationToken::new()).await.unwrap()
}

async fn staged_count(world: &World) -> i64 {
    world.number("SELECT count(*) FROM staged_log_records").await
}

#[tokio::test]
async fn no_record_goes_before_every_registered_consumer_has_passed_it() {
    let world = World::new().await;
    let (mut streamer, mut fast, mut slow) = (world.streamer(), world.consumer("fast"), world.consumer("slow"));
    for _ in 0..3 {
        world.write_rides(10).await;
        world.drain_streamer(&mut streamer).await;
    }
    assert_eq!(
        reap(&world, &["--keep", "0s"]).await.record_count,
        0,
        "without a registered consumer, nothing is removed"
    );
    slow.run_once(consumer::Fault::None, None).await.unwrap();
    world.client().execute("UPDATE checkpoints SET last_offset = 15 WHERE name = 'slow'", &[]).await.unwrap();
    world.drain_consumer(&mut fast).await;
    // Both consumers have passed one batch and a half.
    let cleaned = reap(&world, &["--keep", "0s"]).await;
    assert_eq!((cleaned.batch_count, cleaned.record_count), (1, 10));
    assert_eq!(staged_count(&world).await, 20);
    world.client().execute("UPDATE checkpoints SET last_offset = 30 WHERE name = 'slow'", &[]).await.unwrap();
    let cleaned = reap(&world, &["--keep", "0s"]).await;
    assert_eq!((cleaned.batch_count, cleaned.record_count), (2, 20));
    assert_eq!(reap(&world, &["--keep", "0s"]).await, Cleaned::default());
    assert_eq!(
        world.number("SELECT count(*) FROM log_batches").await,
        1,
        "the last batch stays, because the next batch begins at its end"
    );
}

#[tokio::test]
async fn what_comes_after_the_reaped_is_still_exact() {
    let world = World::new().await;
    let (mut streamer, mut consumer) = (world.streamer(), world.consumer("consumer0"));
    let mut late = world.connect().await;
    let late = late.transaction().await.unwrap();
    tests::write_rides(late.client(), 5).await;
    for _ in 0..20 {
        world.carry_rides(50, &mut streamer, &mut consumer).await;
        reap(&world, &["--keep", "0s"]).await;
    }
    assert_eq!(staged_count(&world).await, 0, "all visible records are passed and removed");
    late.commit().await.unwrap();
    world.drain_streamer(&mut streamer).await;
    world.drain_consumer(&mut consumer).await;
    world.assert_converged(&["consumer0"]).await;
}

#[tokio::test]
async fn reaping_a_batch_reads_no_records_of_those_after() {
    let world = World::new().await;
    world.carry_rides(1, &mut world.streamer(), &mut world.consumer("consumer0")).await;
    assert_eq!(reap(&world, &["--keep", "0s"]).await.record_count, 1);
    let mut client = world.connect().await;
    pglog::prepare_session(&client).await.unwrap();
    // The statements are planned now, while the tables are empty, and the plans are kept.
    assert_eq!(
        pglog::reap(&mut client, pglog::Partition::FIRST, Duration::ZERO).await.unwrap(),
        pglog::ReapedCounts::default()
    );
    world.write_rides(10).await;
    pglog::assign(&client, pglog::Partition::FIRST, 1).await.unwrap().unwrap();
    client.execute("UPDATE checkpoints SET last_offset = last_offset + 10", &[]).await.unwrap();
    world.write_rides(5000).await;
    let read_before = rows_read(&client).await;
    assert_eq!(pglog::reap(&mut client, pglog::Partition::FIRST, Duration::ZERO).await.unwrap().record_count, 10);
    let read_count = rows_read(&client).await - read_before;
    assert!(read_count < 100, "{read_count} rows were read for ten");
}

/// The number of batches that have been read.
async fn batches_read(world: &World) -> i64 {
    let read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'log_batches'";
    world.number(read).await
}

/// The number of staged rows that have been read, by this session and by all ended sessions.
async fn rows_read(client: &ClientWrapper) -> i64 {
    client.execute("SELECT pg_stat_force_next_flush()", &[]).await.unwrap();
    let read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'staged_log_records'";
    client.query_one(read, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn reaping_looks_at_nothing_that_stays() {
    let world = World::new().await;
    let mut consumer = world.consumer("c0");
    let mut late = world.connect().await;
    let late = late.transaction().await.unwrap();
    tests::write_rides(late.client(), 5_000).await;
    world.carry_rides(10, &mut world.streamer(), &mut consumer).await;
    late.commit().await.unwrap();
    assert!(pglog::assign(world.client(), pglog::Partition::FIRST, 1).await.unwrap().is_some());
    let young = "INSERT INTO log_batches (partition, first_offset, record_count, snapshot, token)
                 SELECT 0, first_offset + record_count + number, 1, snapshot, number
                 FROM (SELECT * FROM log_batches ORDER BY first_offset DESC LIMIT 1) AS newest, generate_series(0, 2999) AS number";
    assert_eq!(world.client().execute(young, &[]).await.unwrap(), 3_000);
    let mut client = world.connect().await;
    pglog::prepare_session(&client).await.unwrap();
    let baseline = "INSERT INTO checkpoints (name, is_baseline, last_offset, fold, fold_version, state)
                    SELECT 'baseline', true, last_offset, fold, fold_version, state FROM checkpoints";
    world.client().execute(baseline, &[]).await.unwrap();
    let (entries_before, batches_before) = (entries_read(&world).await, batches_read(&world).await);
    let reaped = pglog::reap(&mut client, pglog::Partition::FIRST, Duration::ZERO).await.unwrap();
    assert_eq!((reaped.batch_count, reaped.record_count), (1, 10));
    client.execute("SELECT pg_stat_force_next_flush()", &[]).await.unwrap();
    let (entry_count, batch_count) =
        (entries_read(&world).await - entries_before, batches_read(&world).await - batches_before);
    assert!(entry_count < 100, "{entry_count} entries were read in the indexes of staged records");
    // A thousand batches are looked at to see whether they can go.
    assert!(batch_count < 2_500, "{batch_count} batches were read");
    world.client().execute("DELETE FROM log_batches WHERE record_count = 1", &[]).await.unwrap();
}

#[tokio::test]
async fn young_batches_are_kept_and_the_stream_with_them() {
    let world = World::new().await;
    world.carry_rides(1_000, &mut world.streamer(), &mut world.consumer("consumer0")).await;
    assert_eq!(reap(&world, &[]).await, Cleaned::default(), "the default keeps an hour");
    world.client().execute("UPDATE log_batches SET created_at = now() - interval '61 minutes'", &[]).await.unwrap();
    let cleaned = reap(&world, &[]).await;
    assert_eq!(cleaned.record_count, 1_000);
    assert!(cleaned.trimmed_count >= 900, "{} entries trimmed", cleaned.trimmed_count);
}

#[tokio::test]
async fn the_stream_is_cut_to_its_cap_and_who_falls_behind_reads_from_postgres() {
    let world = World::new().await;
    let mut consumer = world.consumer("slow");
    world.drain_consumer(&mut consumer).await;
    world.write_rides(5_000).await;
    world.drain_streamer(&mut world.streamer()).await;
    let cleaned = reap(&world, &["--stream-len-max", "500"]).await;
    assert!(cleaned.trimmed_count >= 4_000, "{} entries trimmed", cleaned.trimmed_count);
    let progress = world.drain_consumer(&mut consumer).await;
    assert!(progress.healed_count >= 4_000, "{progress:?}");
    world.assert_converged(&["slow"]).await;
}

#[tokio::test]
async fn a_reaper_killed_between_marking_and_deleting_is_finished_by_the_next() {
    let world = World::new().await;
    world.carry_rides(100, &mut world.streamer(), &mut world.consumer("consumer0")).await;
    // The reaper committed its first transaction only.
    world.client().execute("UPDATE log_batches SET reaped_at = now()", &[]).await.unwrap();
    let cleaned = reap(&world, &["--keep", "0s"]).await;
    assert_eq!((cleaned.batch_count, cleaned.record_count), (0, 100));
}

#[tokio::test]
async fn a_dead_consumer_that_holds_everything_back_is_named_loudly() {
    let world = World::new().await;
    world.drain_consumer(&mut world.consumer("dead")).await;
    world.write_rides(7).await;
    world.drain_streamer(&mut world.streamer()).await;
    world.client().execute("UPDATE checkpoints SET updated_at = now() - interval '1 hour'", &[]).await.unwrap();
    let output = Process::start(&world, "reaper", &["--once", "--keep", "0s"]).succeed().await;
    assert!(
        output.contains("WARN") && output.contains("consumer dead --unregister") && output.contains("lag=7"),
        "{output}"
    );
    Process::start(&world, "consumer", &["dead", "--unregister"]).succeed().await;
    let laggards = reap(&world, &[]).await.laggards;
    assert!(laggards.is_empty(), "{laggards:?}");
}

/// A process slept while another process of the same name went on. It asks for records that are now reaped. Chaos found this
/// case.
#[tokio::test]
async fn a_process_that_was_overtaken_and_whose_records_are_reaped_goes_on() {
    let world = World::new().await;
    let (mut slow, mut fast) = (world.consumer("c"), world.consumer("c"));
    let mut streamer = world.streamer();
    world.carry_rides(10, &mut streamer, &mut slow).await;
    world.carry_rides(10, &mut streamer, &mut fast).await;
    assert_eq!(reap(&world, &["--keep", "0s"]).await.record_count, 20);
    let removed: i64 = redis::cmd("DEL").arg(world.stream_name()).query_async(&mut world.redis().await).await.unwrap();
    assert_eq!(removed, 1);
    world.write_rides(10).await;
    world.drain_streamer(&mut streamer).await;
    let fenced = slow.run_once(consumer::Fault::None, None).await.unwrap_err();
    assert!(matches!(fenced.downcast_ref(), Some(consumer::Interruption::Fenced)), "{fenced:#}");
    world.drain_consumer(&mut slow).await;
    world.assert_converged(&["c"]).await;
}

/// Redis removes at most ten thousand entries per call.
#[tokio::test]
async fn a_long_stream_is_cut_to_its_cap_at_once() {
    let world = World::new().await;
    world.write_rides(50_000).await;
    world.drain_streamer(&mut world.streamer()).await;
    let args = ["--once", "--keep", "1h", "--stream-len-max", "1000"];
    Process::start(&world, "reaper", &args).succeed().await;
    // XTRIM is approximate: it removes whole nodes of a hundred entries.
    assert!((1000..1200).contains(&world.stream_len().await), "{}", world.stream_len().await);
}
