//! The nine causes for which the original lost rides or stood still, one test each. Each test fails on a pipeline that trusts
//! the order of ids, deletes ranges, or takes the stream for the truth.

use std::time::Duration;

use consumer::{Fault as ConsumerFault, Interruption};
use streamer::Fault;
use tests::{PrivateRedis, World, wait_until, write_rides};

/// Cause 1: ids are drawn before commit, so a later ride may become visible first (I3).
#[tokio::test]
async fn cause_1_a_ride_that_commits_after_a_later_one_is_counted() {
    let world = World::new().await;
    let (mut streamer, mut consumer) = (world.streamer(), world.consumer("consumer0"));
    let mut slow = world.connect().await;
    let open = slow.transaction().await.unwrap();
    let query = "WITH written AS (INSERT INTO rides (distance_mm) VALUES (100000) RETURNING id, distance_mm)
                 INSERT INTO staged_log_records (object, action, data)
                 SELECT 'ride', 'create', format('{\"id\":%s,\"distance_mm\":%s}', id, distance_mm)::json FROM written";
    open.execute(query, &[]).await.unwrap();
    assert_eq!(world.carry_rides(1, &mut streamer, &mut consumer).await.applied_count, 1);
    open.commit().await.unwrap();
    world.drain_streamer(&mut streamer).await;
    assert_eq!(world.drain_consumer(&mut consumer).await.applied_count, 1);
    let later_first = "SELECT (SELECT id FROM rides WHERE distance_mm = 100000) - min(id) FROM rides";
    assert_eq!(world.number(later_first).await, 0, "the late ride has the lower id");
    world.assert_converged(&["consumer0"]).await;
}

/// Cause 2: rows that were never sent were deleted together with rows that were sent. With more than 1000 rows staged, all were
/// deleted.
#[tokio::test]
async fn cause_2_a_backlog_of_more_than_one_page_is_sent_whole() {
    let world = World::new().await;
    world.write_rides(2_500).await;
    let (added_count, _) = world.drain_streamer(&mut world.streamer()).await;
    assert_eq!(added_count, 2_500);
    assert_eq!(world.drain_consumer(&mut world.consumer("consumer0")).await.applied_count, 2_500);
    world.assert_converged(&["consumer0"]).await;
}

/// Cause 3: the isolation level was never set, so rows that were committed between two reads were deleted unsent. Here one
/// snapshot defines a batch, so no commit can fall between two statements (I2).
#[tokio::test]
async fn cause_3_rows_committed_while_a_batch_is_cut_are_in_exactly_one_batch() {
    let world = World::new().await;
    let mut streamer = world.streamer();
    let stop = common::shutdown::CancellationToken::new();
    let mut writers = tokio::task::JoinSet::new();
    for count in 1..=8 {
        let (client, stop) = (world.connect().await, stop.clone());
        writers.spawn(async move {
            while !stop.is_cancelled() {
                write_rides(&client, count % 3 + 1).await;
            }
        });
    }
    while world.number("SELECT count(*) FROM log_batches").await < 50 {
        streamer.run_once(Fault::None).await.unwrap();
    }
    stop.cancel();
    writers.join_all().await;
    world.drain_streamer(&mut streamer).await;
    assert_eq!(pglog::head(world.client(), pglog::Partition::FIRST).await.unwrap(), world.sql_totals().await.0);
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    world.assert_converged(&["consumer0"]).await;
}

/// Cause 4: skipped duplicates did not move the reading position, so a thousand in a row blocked a consumer for ever.
#[tokio::test]
async fn cause_4_thousands_of_duplicates_in_a_row_do_not_block_a_consumer() {
    let world = World::new().await;
    let (mut streamer, mut consumer) = (world.streamer(), world.consumer("consumer0"));
    world.carry_rides(1, &mut streamer, &mut consumer).await;
    let mut redis = world.redis().await;
    let token = world.number("SELECT token FROM log_batches").await;
    let mut copies = redis::pipe();
    for copy in 1..=2_500 {
        let entry = ["object", "ride", "action", "create", "data", r#"{"id":1,"distance_mm":1}"#, "staged_at_us", "1"];
        copies.cmd("XADD").arg(world.stream_name()).arg(format!("1-{copy}")).arg(&entry).arg("token").arg(token);
    }
    let _: Vec<String> = copies.query_async(&mut redis).await.unwrap();
    let progress = world.carry_rides(1, &mut streamer, &mut consumer).await;
    assert_eq!((progress.applied_count, progress.duplicate_count, progress.healed_count), (1, 2_500, 0));
    world.assert_converged(&["consumer0"]).await;
}

/// Cause 5: the stream was trimmed to a length, even if a consumer had not read the trimmed entries.
#[tokio::test]
async fn cause_5_entries_trimmed_before_a_slow_consumer_read_them_are_read_from_postgres() {
    let world = World::new().await;
    let (mut streamer, mut consumer) = (world.streamer(), world.consumer("slow"));
    world.carry_rides(10, &mut streamer, &mut consumer).await;
    world.write_rides(3_000).await;
    world.drain_streamer(&mut streamer).await;
    let mut redis = world.redis().await;
    let trimmed: i64 =
        redis::cmd("XTRIM").arg(world.stream_name()).arg("MAXLEN").arg(100).query_async(&mut redis).await.unwrap();
    assert_eq!(trimmed, 2_910);
    let progress = world.drain_consumer(&mut consumer).await;
    assert_eq!((progress.applied_count, progress.healed_count), (3_000, 2_900));
    world.assert_converged(&["slow"]).await;
}

/// Cause 6: Redis lost entries it had acknowledged, after their rows had been deleted (I6).
#[tokio::test]
async fn cause_6_entries_that_redis_lost_after_acknowledging_them_are_published_again() {
    let mut redis = PrivateRedis::start(&["--appendonly", "no"]).await;
    let world = World::with_redis(&redis.url()).await;
    let mut streamer = world.streamer();
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    world.write_rides(500).await;
    world.drain_streamer(&mut streamer).await;
    redis.kill().await;
    redis.start_again().await;
    let length = world.stream_len().await;
    assert_eq!(length, 0, "the stream is empty");
    let mut added_count = 0;
    wait_until("the streamer has noticed", async || {
        // The first step fails on the broken connection. The next step asks the stream where it ends.
        if let Ok(streamer::Step::Published(published)) = streamer.run_once(Fault::None).await {
            added_count += published.added_count;
        }
        added_count == 500
    })
    .await;
    let progress = world.drain_consumer(&mut world.consumer("consumer0")).await;
    assert_eq!((progress.applied_count, progress.healed_count), (500, 0));
    world.assert_converged(&["consumer0"]).await;
}

/// Cause 7: a sum of floating-point numbers depends on the order, and equals SQL's sum only by luck.
#[tokio::test]
async fn cause_7_totals_equal_sql_exactly_where_floating_point_sums_differ() {
    let world = World::new().await;
    // Tenths and thousandths are no binary fractions.
    let distances_mm: Vec<i64> = (1..=2_000).map(|n| n * 100 + n % 7).collect();
    for chunk in distances_mm.chunks(100) {
        let query = "WITH written AS (INSERT INTO rides (distance_mm) SELECT unnest($1::bigint[]) RETURNING id, distance_mm)
                     INSERT INTO staged_log_records (object, action, data)
                     SELECT 'ride', 'create', format('{\"id\":%s,\"distance_mm\":%s}', id, distance_mm)::json FROM written";
        world.client().execute(query, &[&chunk]).await.unwrap();
    }
    let metres = |distances_mm: &[i64]| distances_mm.iter().map(|mm| *mm as f64 / 1000.0).sum::<f64>();
    let backwards: Vec<i64> = distances_mm.iter().rev().copied().collect();
    assert_ne!(metres(&distances_mm), metres(&backwards), "floating-point sums would differ here");
    world.drain_streamer(&mut world.streamer()).await;
    for name in ["consumer0", "consumer1"] {
        world.drain_consumer(&mut world.consumer(name)).await;
    }
    world.assert_converged(&["consumer0", "consumer1"]).await;
    assert_eq!(world.committed("consumer0").await.1.total_distance_mm, distances_mm.iter().sum::<i64>());
}

/// Cause 8: ids came from a clock. A rebuilt Redis whose clock was behind issued ids that every consumer had passed, and all
/// consumers stood still without an error. Here an id is an offset, whatever a clock says.
#[tokio::test]
async fn cause_8_a_rebuilt_redis_starves_nobody_whatever_its_clock_says() {
    let redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    let (mut streamer, mut consumer) = (world.streamer(), world.consumer("consumer0"));
    world.carry_rides(100, &mut streamer, &mut consumer).await;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut world.redis().await).await.unwrap();
    world.write_rides(50).await;
    world.drain_streamer(&mut streamer).await;
    // The same process continues from its old position.
    let progress = world.drain_consumer(&mut consumer).await;
    assert_eq!(progress.applied_count, 50);
    let first: Vec<(String, Vec<String>)> = redis::cmd("XRANGE")
        .arg(world.stream_name())
        .arg("-")
        .arg("+")
        .arg("COUNT")
        .arg(1)
        .query_async(&mut world.redis().await)
        .await
        .unwrap();
    assert_eq!(first[0].0, "101-0", "the id is the offset of the record, and not a time");
    world.assert_converged(&["consumer0"]).await;
}

/// Cause 9, first part: a poison record crashed every consumer, again after each restart.
#[tokio::test]
async fn cause_9_a_poison_record_is_put_with_the_dead_letters_and_passed() {
    let world = World::new().await;
    world.stage_data(r#"{"id":1,"distance_mm":-5}"#).await;
    world.write_rides(3).await;
    world.stage_data(r#"{"distance":12}"#).await;
    let progress = world.carry_rides(3, &mut world.streamer(), &mut world.consumer("consumer0")).await;
    assert_eq!((progress.applied_count, progress.dead_letter_count), (6, 2));
    let reasons =
        world.number("SELECT count(*) FROM dead_letters WHERE record_offset IN (1, 5) AND reason <> ''").await;
    assert_eq!(reasons, 2);
    world.assert_converged(&["consumer0"]).await;
}

/// Cause 9, second part: two processes with the same name both added to one total (I5).
#[tokio::test]
async fn cause_9_two_processes_of_one_name_do_not_count_anything_twice() {
    let world = World::new().await;
    let mut streamer = world.streamer();
    let (mut first, mut second) = (world.consumer("twin"), world.consumer("twin"));
    world.carry_rides(10, &mut streamer, &mut first).await;
    world.drain_consumer(&mut second).await;
    world.carry_rides(10, &mut streamer, &mut first).await;
    // The second process read its checkpoint before the first process moved it.
    let error = second.run_once(ConsumerFault::None, None).await.unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Interruption::Fenced)), "{error:#}");
    world.drain_consumer(&mut second).await;
    world.assert_converged(&["twin"]).await;
}

/// Cause 9, third part: a slow Redis kept a transaction open.
#[tokio::test]
async fn cause_9_no_transaction_is_open_while_a_consumer_waits_for_redis() {
    // A private Redis, because in the shared one the waiting consumer could belong to another test.
    let redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    let config = world.consumer_config("consumer0");
    let shutdown = common::shutdown::CancellationToken::new();
    let running = tokio::spawn(consumer::run(config, consumer::FOLDS, shutdown.clone()));
    let mut redis = world.redis().await;
    wait_until("the consumer waits in Redis", async || {
        let clients: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut redis).await.unwrap();
        clients.lines().any(|line| line.contains("cmd=xread") && line.contains("flags=b"))
    })
    .await;
    let sessions = "SELECT count(*) FROM pg_stat_activity
                    WHERE application_name = 'consumer consumer0' AND datname = current_database() AND state";
    assert_eq!(world.number(&format!("{sessions} <> 'idle'")).await, 0);
    assert!(world.number(&format!("{sessions} = 'idle'")).await > 0, "the session of the consumer was looked at");
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), running).await.expect("it stops at once").unwrap().unwrap();
}
