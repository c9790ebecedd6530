//! The doctor's checks of wallets, each with the fault that it looks for.

use redis::AsyncTypedCommands;
use tests::{PrivateRedis, World};
use wallet::model::{Epoch, mark_key};

use crate::doctor::findings;
use crate::wallet_tables::use_wallet;

#[tokio::test]
async fn ids_that_sessions_draw_in_advance_are_seen() {
    let world = World::new().await;
    findings(&world, &[]).await.assert_ok("log.ids");
    let cache = "ALTER TABLE staged_log_records ALTER COLUMN id SET CACHE 20";
    world.client().batch_execute(cache).await.unwrap();
    let all = findings(&world, &[]).await;
    all.assert("log.ids", "warn", "each session draws 20 ids at a time", "SET CACHE 1");
    let fix = all.get("log.ids")["fix"].as_str().unwrap().to_owned();
    world.client().batch_execute(&fix).await.unwrap();
    findings(&world, &[]).await.assert_ok("log.ids");
}

#[tokio::test]
async fn tables_of_wallets_that_take_anything_are_seen() {
    let world = World::new().await;
    findings(&world, &[]).await.assert_ok("wallets.tables");
    for (harm, name) in [
        ("DROP INDEX wallet_events_accepted", "wallet_events_accepted"),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'wallet_events_key'::regclass",
            "wallet_events_key",
        ),
        ("ALTER TABLE wallet_events DISABLE TRIGGER wallet_events_never_change", "wallet_events_never_change"),
        ("DROP TRIGGER wallet_locks_never_change ON wallet_locks", "wallet_locks_never_change"),
    ] {
        world.client().batch_execute(harm).await.unwrap();
        findings(&world, &[]).await.assert("wallets.tables", "fail", name, "schema.sql");
    }
    world.client().batch_execute("DROP TABLE wallet_events CASCADE").await.unwrap();
    findings(&world, &[]).await.assert("wallets.tables", "fail", "the tables are missing", "schema.sql");
}

#[tokio::test]
async fn wallets_without_a_consumer_that_keeps_their_documents_are_seen() {
    let world = World::new().await;
    findings(&world, &[]).await.assert_ok("wallets.projector");
    use_wallet(world.client()).await;
    let all = findings(&world, &[]).await;
    all.assert("wallets.projector", "warn", "no consumer with the fold wallets", "consumer wallets --fold wallets");
    let register = "INSERT INTO checkpoints (name, fold, fold_version) VALUES ('wallets', 'wallets', 1)";
    world.client().batch_execute(register).await.unwrap();
    findings(&world, &[]).await.assert_ok("wallets.projector");
}

#[tokio::test]
async fn a_mark_that_no_document_can_be_believed_under_is_seen() {
    let redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    world.carry_rides(5, &mut world.streamer(), &mut world.consumer("c0")).await;
    let register =
        "INSERT INTO checkpoints (name, last_offset, fold, fold_version) VALUES ('wallets', 3, 'wallets', 1)";
    world.client().batch_execute(register).await.unwrap();
    findings(&world, &[]).await.assert("wallets.mark", "warn", "Redis has no mark", "consumer wallets");
    let token = world.number("SELECT token FROM log_batches").await;
    let (mut redis, epoch) = (world.redis().await, Epoch::random());
    for (offset, token, verdict, what) in [
        (2, token, "warn", "the mark in Redis is behind the checkpoint"),
        (4, token + 1, "warn", "the mark in Redis is of another batch"),
        (6, token, "warn", "the mark in Redis is beyond the log"),
        (4, token, "ok", "checkpoint 3, head 5"),
    ] {
        let mark = tests::mark(epoch, offset, token).to_string();
        redis.set(mark_key(world.stream_name()), mark).await.unwrap();
        let all = findings(&world, &[]).await;
        let finding = all.get("wallets.mark");
        assert_eq!(finding["verdict"], verdict, "{finding}");
        assert!(finding["what"].as_str().unwrap().contains(what), "{finding}");
    }
}

#[tokio::test]
async fn a_redis_that_cannot_keep_documents_is_seen() {
    let redis = PrivateRedis::start(&["--maxmemory-policy", "allkeys-lru"]).await;
    let world = World::new().await;
    use_wallet(world.client()).await;
    let of = ["--wallets-redis-url", &redis.url()];
    let all = findings(&world, &of).await;
    all.assert("wallets.redis", "warn", "maxmemory-policy is allkeys-lru", "noeviction");
    all.assert_ok("redis.eviction");
    findings(&world, &[]).await.assert_ok("wallets.redis");
    let nowhere = ["--wallets-redis-url", "redis://127.0.0.1:1"];
    findings(&world, &nowhere).await.assert("wallets.redis", "warn", "connecting to Redis", "WALLETS_REDIS_URL");
    let port = tests::free_port().to_string();
    let cluster = ["--cluster-enabled", "yes", "--bind", "127.0.0.1", "--port", &port];
    let cluster = PrivateRedis::start(&cluster).await;
    let all = findings(&world, &["--wallets-redis-url", &cluster.url()]).await;
    all.assert("wallets.redis", "fail", "a node of a Redis Cluster", "server of its own");
}
