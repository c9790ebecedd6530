//! After the response to a command, readers see its effect, in Redis and with its version everywhere (W5, W6).

use futures_util::future::join_all;
use tests::{PrivateRedis, Process, Watched, World, wait_until};
use wallet::WalletId;
use wallet::model::mark_key;

use crate::wallet_fixture::{Bank, assert_sound};

/// Commands one after another. Redis may be slow for a moment on a busy machine, and then a response does not wait for it.
const COMMAND_COUNT: i64 = 60;

#[tokio::test]
async fn after_the_response_readers_see_the_effect_in_redis() {
    let world = World::new().await;
    let (_api, bank) = Bank::start(&world).await;
    let projector = Process::start(&world, "consumer", &["wallets", "--fold", "wallets"]);
    let (mut redis, mark) = (world.redis().await, mark_key(world.stream_name()));
    let begun = async || redis::cmd("EXISTS").arg(&mark).query_async::<i64>(&mut redis).await.unwrap() == 1;
    wait_until("the read model has begun", begun).await;
    let (wallet, other) = (WalletId::new(), WalletId::new());
    bank.credit(wallet, 1000).await.accepted();
    bank.credit(other, 1000).await.accepted();
    for id in [wallet, other] {
        let is_there = async || bank.read(id, 1).await.0 == "redis";
        wait_until("the document is there", is_there).await;
    }
    // From here on no record is published, so the projector writes nothing.
    let mut from_redis_count = 0;
    for _ in 0..COMMAND_COUNT {
        let version = bank.transfer(wallet, other, 1).await.accepted().version();
        for id in [wallet, other] {
            let (source, seen) = bank.read(id, version).await;
            assert!(seen >= version, "a reader with min_version sees less (W5): {seen} < {version}");
            from_redis_count += i64::from(source == "redis");
        }
        bank.debit(wallet, 10_000).await.rejected();
        assert_eq!(bank.read(wallet, version).await.1, version, "a rejected attempt changes nothing");
    }
    // Each read follows a change, so without the write-through none is from Redis.
    let read_count = 2 * COMMAND_COUNT;
    assert!(2 * from_redis_count > read_count, "{from_redis_count} of {read_count} states were in Redis");

    // Many commands of one group are one change.
    join_all((0..50).map(|_| async { bank.credit(wallet, 1).await.accepted() })).await;
    let last = 1 + COMMAND_COUNT + 50;
    let (_, seen) = bank.read(wallet, last).await;
    assert_eq!(seen, last);
    projector.stop().await;
    assert_sound(&world).await;
}

#[tokio::test]
async fn a_process_without_requests_knows_whether_documents_can_be_believed() {
    let mut redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    let api = Watched::start(&world, "api", &["--api-port", "0"]).await;
    let becomes = async |value: f64| {
        let is_it = async || api.metric("rocket_rides_wallet_model_up").await == value;
        wait_until(&format!("the metric is {value}"), is_it).await;
    };
    wait_until("the api is connected", async || api.process.output().contains("the wallets' read model is there"))
        .await;
    assert_eq!(api.metric("rocket_rides_wallet_model_up").await, 0.0, "Redis has no mark");
    let projector = Process::start(&world, "consumer", &["wallets", "--fold", "wallets"]);
    becomes(1.0).await;
    projector.stop().await;
    world.forget_wallets().await;
    becomes(0.0).await;
    let projector = Process::start(&world, "consumer", &["wallets", "--fold", "wallets"]);
    becomes(1.0).await;
    redis.kill().await;
    becomes(0.0).await;
    redis.start_again().await;
    becomes(1.0).await;
    projector.stop().await;
}
