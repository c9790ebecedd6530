//! The audit of the documents of wallets in Redis: each difference from Postgres is named with its wallet.

use std::time::Duration;

use redis::AsyncTypedCommands;
use tests::{PrivateRedis, Process, World, mark, wait_until};
use wallet::WalletId;
use wallet::documents::docs;
use wallet::model::{Epoch, Model, mark_key};

use crate::wallet_tables::{WALLET, use_wallet};

/// A world with a wallet, its document, and a mark at offset 0.
async fn world_with_document(redis: &PrivateRedis) -> (World, Model, Epoch) {
    let world = World::with_redis(&redis.url()).await;
    use_wallet(world.client()).await;
    // The audit of Postgres wants records.
    let stage = "INSERT INTO staged_log_records (object, action, data)
                 SELECT 'wallet', CASE WHEN accepted THEN action ELSE 'reject' END,
                        json_strip_nulls(json_build_object('wallet_id', wallet_id, 'version', version, 'event_id', event_id,
                            'amount_minor', amount_minor, 'balance_minor', balance_minor, 'counterparty', counterparty,
                            'reason', reason, 'action', CASE WHEN NOT accepted THEN action END))
                 FROM wallet_events";
    world.client().batch_execute(stage).await.unwrap();
    let client = stream::redis::client(world.redis_url()).unwrap();
    let model = Model::start(client, world.stream_name(), Duration::from_secs(5));
    wait_until("the model is there", async || model.mark().await.is_ok()).await;
    let epoch = Epoch::random();
    assert!(model.begin(None, &mark(epoch, 0, 0)).await.unwrap());
    put(&world, &model, epoch).await;
    (world, model, epoch)
}

async fn put(world: &World, model: &Model, epoch: Epoch) {
    let wallets: [WalletId; 1] = [WALLET.parse().unwrap()];
    let documents = docs(world.client(), &wallets).await.unwrap();
    model.put(Some(epoch), &documents).await.unwrap();
}

/// Replaces a part of the document.
async fn change(world: &World, from: &str, to: &str) {
    let (mut redis, key) = (world.redis().await, format!("wallet.{WALLET}"));
    let text = redis.get(&key).await.unwrap().unwrap();
    assert!(text.contains(from), "{text}");
    redis.set(&key, text.replacen(from, to, 1)).await.unwrap();
}

async fn different(world: &World, difference: &str) {
    let output = Process::start(world, "audit", &[]).fail(1).await;
    assert!(output.contains(&format!("DIFFERENCE: {difference}")), "no {difference:?} in\n{output}");
    assert!(output.ends_with("\n1 differences\n"), "{output}");
    Process::start(world, "audit", &["--no-stream"]).succeed().await;
}

#[tokio::test]
async fn true_documents_are_equal_and_those_that_readers_do_not_believe_are_no_difference() {
    let redis = PrivateRedis::start(&[]).await;
    let (world, model, epoch) = world_with_document(&redis).await;
    let output = Process::start(&world, "audit", &[]).succeed().await;
    let line =
        format!("wallets in Redis, epoch {epoch} up to offset 0: 1 documents equal, 0 different, 0 that readers");
    assert!(output.contains(&line), "{output}");
    change(&world, &epoch.to_string(), &Epoch::random().to_string()).await;
    let output = Process::start(&world, "audit", &[]).succeed().await;
    assert!(output.contains("0 documents equal, 0 different, 1 that readers do not believe"), "{output}");
    model.end(epoch).await.unwrap();
    let output = Process::start(&world, "audit", &[]).succeed().await;
    assert!(!output.contains("wallets in Redis"), "{output}");
}

#[tokio::test]
async fn a_document_that_is_not_the_newest_state_is_told() {
    let redis = PrivateRedis::start(&[]).await;
    let (world, ..) = world_with_document(&redis).await;
    let at = |version: i64, words: &str| format!("wallet {WALLET}, version {version}: in Redis {words}");
    change(&world, "\"balance\":3.00", "\"balance\":3.01").await;
    different(&world, &at(2, "the balance is 3.01, and in Postgres 3.00")).await;
    change(&world, "\"balance\":3.01", "\"balance\":3.00").await;
    change(&world, "\"amount\":-2.00", "\"amount\":-2.01").await;
    different(&world, &at(2, "the transactions or times are others")).await;
    change(&world, "\"version_id\":2", "\"version_id\":1").await;
    different(&world, &at(1, "is an older state: Postgres has version 2")).await;
    change(&world, "\"version_id\":1", "\"version_id\":3").await;
    different(&world, &at(3, "is an unknown state: Postgres has version 2")).await;
    let mut redis = world.redis().await;
    redis.rename(format!("wallet.{WALLET}"), "wallet.000000000000000000000000000").await.unwrap();
    different(&world, "wallet 000000000000000000000000000, version 3: in Redis its key holds the document of").await;
}

#[tokio::test]
async fn a_document_that_is_written_meanwhile_is_waited_for() {
    let redis = PrivateRedis::start(&[]).await;
    let (world, model, epoch) = world_with_document(&redis).await;
    change(&world, "\"version_id\":2", "\"version_id\":1").await;
    let mut audit = Process::start(&world, "audit", &[]);
    audit.wait_for("waiting for documents that are older than Postgres").await;
    put(&world, &model, epoch).await;
    audit.succeed().await;
}

#[tokio::test]
async fn a_mark_of_another_past_or_below_the_checkpoint_is_told() {
    let redis = PrivateRedis::start(&[]).await;
    let (world, model, epoch) = world_with_document(&redis).await;
    assert!(model.begin(Some(epoch), &mark(Epoch::random(), 9, 1)).await.unwrap());
    different(&world, "wallets in Redis: the mark in Redis is beyond the log").await;
    let mut redis = world.redis().await;
    redis.del(mark_key(world.stream_name())).await.unwrap();
    assert!(model.begin(None, &mark(epoch, 0, 0)).await.unwrap());
    world.drain_streamer(&mut world.streamer()).await;
    let behind = "INSERT INTO checkpoints (name, last_offset, fold, fold_version) VALUES ('wallets', 3, 'wallets', 1)";
    world.client().batch_execute(behind).await.unwrap();
    different(&world, "wallets in Redis: the mark in Redis is behind the checkpoint").await;
}

#[tokio::test]
async fn without_redis_the_documents_are_not_compared_and_that_is_said() {
    let mut redis = PrivateRedis::start(&[]).await;
    let (world, ..) = world_with_document(&redis).await;
    redis.kill().await;
    let output = Process::start(&world, "audit", &[]).fail(1).await;
    assert!(output.contains("DIFFERENCE: wallets in Redis: not compared, "), "{output}");
    assert!(output.contains("(--no-stream audits Postgres only)"), "{output}");
    Process::start(&world, "audit", &["--no-stream"]).succeed().await;
}
