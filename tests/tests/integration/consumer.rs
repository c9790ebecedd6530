//! The consumer's loop: other folds, and all ways to start and to stop.

use common::shutdown::CancellationToken;
use consumer::{
    CheckpointKey, Consumer, DistanceFold, Fault, FoldId, Progress, Registry, Rejection, RowFold, Rows, RowsOf, State,
    Statement, row_fold,
};
use pglog::Record;
use tests::{PrivatePostgres, PrivateRedis, Process, World, wait_until};

/// A fold of another application: it counts the records of each object.
#[derive(Default)]
pub struct ObjectCounts {
    objects: Vec<String>,
}

/// The folds of that application.
pub const OBJECT_COUNTS: Registry = Registry(&[row_fold::<ObjectCounts>]);

/// Its table. The owner creates it, because consumers may not create tables.
pub const OBJECT_COUNTS_TABLE: &str = "CREATE TABLE object_counts (
        name TEXT, partition INT, object TEXT, count BIGINT, PRIMARY KEY (name, partition, object),
        FOREIGN KEY (name, partition) REFERENCES checkpoints ON DELETE CASCADE);
    GRANT SELECT, INSERT, UPDATE ON object_counts TO rocket_consumer";

impl RowFold for ObjectCounts {
    const ID: FoldId = FoldId { name: "objects", version: 1 };

    const ROWS: RowsOf = RowsOf::Each {
        tables: &["object_counts"],
        copy: "INSERT INTO object_counts SELECT $2, $3, object, count FROM object_counts WHERE name = $1 AND partition = $3",
    };

    fn takes(&self, object: &str, _action: &str) -> bool {
        object != "secret"
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        self.objects.push(record.object.to_owned());
        Ok(())
    }

    fn statements(&mut self, key: &CheckpointKey) -> Vec<Statement> {
        let counting = Statement::new(
            "INSERT INTO object_counts SELECT $1, $2, object, count(*) FROM unnest($3::text[]) object GROUP BY object
             ON CONFLICT (name, partition, object) DO UPDATE SET count = object_counts.count + excluded.count",
        );
        vec![counting.with(key.name.clone()).with(key.partition).with(std::mem::take(&mut self.objects))]
    }
}

#[tokio::test]
async fn another_fold_runs_on_the_same_loop() {
    let world = World::new().await;
    let insert = "INSERT INTO staged_log_records (object, action, data)
                  SELECT (ARRAY['ride', 'wallet', 'secret'])[1 + n % 3], 'create', '{}' FROM generate_series(0, 29) n";
    world.client().batch_execute(insert).await.unwrap();
    world.client().batch_execute(OBJECT_COUNTS_TABLE).await.unwrap();
    world.drain_streamer(&mut world.streamer()).await;
    let fold = Rows::<ObjectCounts>::default();
    let mut consumer = Consumer::new(&world.consumer_config("objects"), fold, CancellationToken::new());
    consumer.run_once(Fault::CrashBeforeCommit, None).await.unwrap_err();
    let progress = consumer.run_once(Fault::None, None).await.unwrap();
    assert_eq!((progress.applied_count, progress.passed_count), (20, 10));
    assert_eq!(world.number("SELECT sum(count)::bigint FROM object_counts").await, 20);
    assert_eq!(world.number("SELECT count FROM object_counts WHERE object = 'wallet'").await, 10);
    assert_eq!(world.number("SELECT last_offset FROM checkpoints WHERE name = 'objects'").await, 30);
}

#[tokio::test]
async fn a_checkpoint_does_not_move_without_its_state() {
    let world = World::new().await;
    let (mut streamer, mut consumer) = (world.streamer(), world.consumer("consumer0"));
    world.carry_rides(3, &mut streamer, &mut consumer).await;
    // A process that folds and is then told to crash leaves both as they were.
    world.write_rides(2).await;
    world.drain_streamer(&mut streamer).await;
    let before = world.committed("consumer0").await;
    consumer.run_once(Fault::CrashBeforeCommit, None).await.unwrap_err();
    assert_eq!(world.committed("consumer0").await, before);
    // A consumer whose state is gone does not start again with an empty one.
    world.client().batch_execute("UPDATE checkpoints SET state = NULL").await.unwrap();
    for _ in 0..2 {
        let error = consumer.run_once(Fault::None, None).await.unwrap_err();
        assert!(format!("{error:#}").contains("the state of fold distance version 1 is gone"), "{error:#}");
    }
    assert_eq!(world.number("SELECT last_offset FROM checkpoints").await, 3);
}

/// A consumer that has committed `page_count` pages of one record each.
async fn consumer_after_pages(world: &World, page_count: usize) -> Consumer<State<DistanceFold>> {
    let (mut streamer, mut consumer) = (world.streamer(), world.consumer("consumer0"));
    for _ in 0..page_count {
        world.carry_rides(1, &mut streamer, &mut consumer).await;
    }
    consumer
}

#[tokio::test]
async fn most_pages_do_not_search_through_old_versions_of_their_rows() {
    let world = World::new().await;
    // Postgres counts the accesses of a session when it ends.
    drop(consumer_after_pages(&world, 40).await);
    let of = "FROM pg_stat_user_tables WHERE relname = 'checkpoints'";
    wait_until("the updates are counted", async || world.number(&format!("SELECT n_tup_upd {of}")).await >= 40).await;
    let lookup_count = world.number(&format!("SELECT seq_scan + idx_scan {of}")).await;
    assert!(lookup_count < 20, "{lookup_count} look-ups by key");
}

#[tokio::test]
async fn old_versions_of_a_consumers_rows_do_not_pile_up() {
    // Private servers, because a transaction of another test keeps old versions alive, and because autovacuum must be off.
    let postgres = PrivatePostgres::start_with(&["autovacuum=off", "fsync=off"]).await;
    let redis = PrivateRedis::start(&[]).await;
    let world = World::on(&postgres.url(), &redis.url()).await;
    let _consumer = consumer_after_pages(&world, 300).await;
    assert_eq!(world.number("SELECT pg_relation_size('checkpoints') / 8192").await, 1);
}

#[tokio::test]
async fn rows_that_were_moved_are_found_again() {
    let world = World::new().await;
    let (mut streamer, mut consumer) = (world.streamer(), world.consumer("consumer0"));
    for round in 0..3 {
        for _ in 0..3 {
            world.carry_rides(1, &mut streamer, &mut consumer).await;
        }
        let before = place(&world).await;
        world.client().batch_execute("VACUUM FULL checkpoints").await.unwrap();
        assert_ne!(place(&world).await, before, "VACUUM FULL has moved nothing");
        world.write_rides(1).await;
        world.drain_streamer(&mut streamer).await;
        assert_eq!(consumer.run_once(Fault::None, None).await.unwrap().applied_count, 1, "{round}");
    }
    world.assert_converged(&["consumer0"]).await;
}

/// The physical place of the only checkpoint.
async fn place(world: &World) -> String {
    world.client().query_one("SELECT ctid::text FROM checkpoints", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn records_of_other_kinds_are_passed_over() {
    let world = World::new().await;
    world.write_rides(2).await;
    let other = pglog::NewRecord { key: "", object: "invoice", action: "paid", data: "[1,2,3]", traceparent: None };
    pglog::stage(world.client(), other).await.unwrap();
    let progress = world.carry_rides(2, &mut world.streamer(), &mut world.consumer("consumer0")).await;
    assert_eq!((progress.applied_count, progress.passed_count, progress.dead_letter_count), (4, 1, 0));
    world.assert_converged(&["consumer0"]).await;
}

#[tokio::test]
async fn consumers_go_on_without_redis() {
    let mut redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    let mut consumer = Process::start(&world, "consumer", &["consumer0"]);
    let mut streamer = Process::start(&world, "streamer", &[]);
    streamer.wait_for("leading").await;
    world.write_rides(10).await;
    consumer.wait_for("batch committed").await;
    redis.kill().await;
    world.write_rides(3_000).await;
    wait_until("all is folded, with Redis away", async || world.committed("consumer0").await.0 == 3_010).await;
    redis.start_again().await;
    world.write_rides(10).await;
    wait_until("the streamer is back", async || streamer.output().contains("last_offset=3020")).await;
    wait_until("all is folded", async || world.committed("consumer0").await.0 == 3_020).await;
    world.assert_converged(&["consumer0"]).await;
    consumer.stop().await;
    streamer.stop().await;
}

#[tokio::test]
async fn drain_reaches_the_head_and_exits_even_if_the_stream_is_lost() {
    let redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    world.write_rides(1_500).await;
    world.drain_streamer(&mut world.streamer()).await;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut world.redis().await).await.unwrap();
    Process::start(&world, "consumer", &["consumer0", "--drain"]).succeed().await;
    world.assert_converged(&["consumer0"]).await;
}

#[tokio::test]
async fn an_unregistered_consumer_is_forgotten_and_does_not_come_back_by_itself() {
    let world = World::new().await;
    let mut running = Process::start(&world, "consumer", &["gone"]);
    world.write_rides(1).await;
    world.drain_streamer(&mut world.streamer()).await;
    running.wait_for("batch committed").await;
    let output = Process::start(&world, "consumer", &["gone", "--unregister"]).succeed().await;
    assert!(output.contains("consumer gone is unregistered"), "{output}");
    world.write_rides(1).await;
    world.drain_streamer(&mut world.streamer()).await;
    let output = running.fail(1).await;
    assert!(output.contains("this consumer was unregistered"), "{output}");
    assert_eq!(world.number("SELECT count(*) FROM checkpoints").await, 0);
    assert_eq!(world.number("SELECT count(*) FROM consumer_states").await, 0);
    let output = Process::start(&world, "consumer", &["gone", "--unregister"]).fail(1).await;
    assert!(output.contains("no consumer \"gone\" is registered"), "{output}");
}

#[tokio::test]
async fn a_new_consumer_starts_with_the_state_of_another() {
    let world = World::new().await;
    let mut streamer = world.streamer();
    world.carry_rides(50, &mut streamer, &mut world.consumer("old")).await;
    let output = Process::start(&world, "consumer", &["new", "--copy-from", "old"]).succeed().await;
    assert!(output.contains("at offset 50"), "{output}");
    world.write_rides(50).await;
    world.drain_streamer(&mut streamer).await;
    for name in ["old", "new"] {
        assert_eq!(world.drain_consumer(&mut world.consumer(name)).await.applied_count, 50);
    }
    world.assert_converged(&["old", "new"]).await;
    let output = Process::start(&world, "consumer", &["new", "--copy-from", "old"]).fail(1).await;
    assert!(output.contains("registered already"), "{output}");
    let output = Process::start(&world, "consumer", &["other", "--copy-from", "nobody"]).fail(1).await;
    assert!(output.contains("no consumer \"nobody\""), "{output}");
}

#[tokio::test]
async fn a_consumer_prints_its_total_as_it_goes() {
    let world = World::new().await;
    world.stage(1, 5_000).await;
    let mut streamer = world.streamer();
    streamer.run_once(streamer::Fault::SendTwice).await.unwrap();
    let output = Process::start(&world, "consumer", &["consumer0", "--drain"]).succeed().await;
    assert!(output.contains("total_distance=5.0m rides=1") && output.contains("duplicate_count=1"), "{output}");
}

#[tokio::test]
async fn a_consumer_whose_connection_is_cut_goes_on_where_it_committed() {
    let world = World::new().await;
    let (mut streamer, mut consumer) = (world.streamer(), world.consumer("consumer0"));
    world.carry_rides(10, &mut streamer, &mut consumer).await;
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE application_name = 'consumer consumer0' AND datname = current_database()";
    assert_eq!(world.number(kill).await, 1);
    world.write_rides(10).await;
    world.drain_streamer(&mut streamer).await;
    wait_until("it has connected again", async || {
        matches!(consumer.run_once(Fault::None, None).await, Ok(Progress { applied_count: 10, .. }))
    })
    .await;
    world.assert_converged(&["consumer0"]).await;
}

#[tokio::test]
async fn a_process_does_not_take_a_new_registration_of_its_name_for_its_own() {
    let world = World::new().await;
    let mut streamer = world.streamer();
    let mut idle = world.consumer("consumer0");
    world.carry_rides(5, &mut streamer, &mut idle).await;
    // Meanwhile the name is registered anew, with the same fold, and comes to the same offset.
    for command in ["--unregister", "--register"] {
        Process::start(&world, "consumer", &["consumer0", command]).succeed().await;
    }
    let mut successor = world.consumer("consumer0");
    world.drain_consumer(&mut successor).await;
    world.write_rides(1).await;
    world.drain_streamer(&mut streamer).await;
    let error = idle.run_once(Fault::None, None).await.unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(consumer::Interruption::Fenced)), "{error:#}");
    assert_eq!(world.committed("consumer0").await.0, 5, "the process that was idle has committed nothing");
    world.drain_consumer(&mut successor).await;
    world.assert_converged(&["consumer0"]).await;
}

/// Under a stricter default a transaction that has waited for a lock would not see what the holder has committed.
#[tokio::test]
async fn the_servers_default_isolation_does_not_matter() {
    let world = World::new().await;
    let database = world.client().query_one("SELECT current_database()::text", &[]).await.unwrap();
    let stricter =
        format!("ALTER DATABASE {} SET default_transaction_isolation = 'serializable'", database.get::<_, &str>(0));
    world.client().batch_execute(&stricter).await.unwrap();
    let config = world.consumer_config("consumer0").postgres.database_url;
    let client = connect::postgres::connect(&config, "test", || {}).await.unwrap();
    let level: String = client.query_one("SHOW transaction_isolation", &[]).await.unwrap().get(0);
    assert_eq!(level, "read committed");
}
