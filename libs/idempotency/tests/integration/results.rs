//! Results in Redis and operations in Postgres (AN-S06): where each result is stored, and which results are lost with Redis.

use std::time::Duration;

use crate::support::{HOUR, PostgresWorld, ResultsInRedisWorld, World, operation};
use idempotency::{Claimed, Error, ResultsInRedis, Store};

/// The column `result` in Postgres.
async fn in_postgres(world: &PostgresWorld) -> Vec<u8> {
    world.client().await.query_one("SELECT result FROM tracked_operations", &[]).await.unwrap().get(0)
}

/// The key in Redis to which Postgres refers.
async fn key_in_redis(world: &ResultsInRedisWorld) -> String {
    let reference = String::from_utf8(in_postgres(&world.postgres).await).unwrap();
    reference.strip_prefix("\0in redis: ").expect("it is a reference").to_owned()
}

/// A Redis that is away: no server listens on this port.
fn nobody() -> redis::Client {
    redis::Client::open("redis://127.0.0.1:1/").unwrap()
}

#[tokio::test]
async fn an_s06_a_long_result_is_in_redis_and_a_reference_in_postgres() {
    let world = ResultsInRedisWorld::new().await;
    let store = ResultsInRedis::new(world.postgres.store(), world.redis.client.clone(), &world.redis.prefix, 10, HOUR);
    let result: Vec<u8> = (0..=255).collect();
    let claim = world.claim(&operation("key")).await;
    store.finish(&claim, &result).await.unwrap();
    assert_eq!(store.claim(&operation("key")).await.unwrap(), Claimed::Finished(result.clone()));

    let key = key_in_redis(&world).await;
    assert!(key.starts_with(&format!("{}:result:{}:{}:", world.redis.prefix, claim.id, claim.token)), "{key}");
    let (kept, ttl_ms): (Vec<u8>, i64) =
        redis::pipe().get(&key).cmd("PTTL").arg(&key).query_async(&mut world.redis.connection().await).await.unwrap();
    assert_eq!(kept, result);
    assert!((1..=3_600_000).contains(&ttl_ms), "{ttl_ms}");
}

#[tokio::test]
async fn an_s06_a_short_result_stays_in_postgres() {
    let world = ResultsInRedisWorld::new().await;
    let store = ResultsInRedis::new(world.postgres.store(), nobody(), "unused", 10, HOUR);
    let claim = world.claim(&operation("key")).await;
    store.finish(&claim, b"0123456789").await.unwrap();
    assert_eq!(in_postgres(&world.postgres).await, b"0123456789");
    assert_eq!(store.claim(&operation("key")).await.unwrap(), Claimed::Finished(b"0123456789".to_vec()));
}

#[tokio::test]
async fn an_s06_a_result_that_redis_lost_is_an_error_and_the_operation_stays_done() {
    let world = ResultsInRedisWorld::new().await;
    world.finish(&operation("key"), b"Ok!").await;
    let key = key_in_redis(&world).await;
    redis::cmd("DEL").arg(key).query_async::<()>(&mut world.redis.connection().await).await.unwrap();
    for _ in 0..2 {
        let error = world.store().claim(&operation("key")).await.unwrap_err();
        assert!(matches!(error, Error::ResultLost { .. }), "{error:?}");
        let text = "Operation [POST]/rides was done for key key, but its result is not kept any more.";
        assert_eq!(error.to_string(), text);
    }
    assert!(matches!(world.store().find("[POST]/rides", "key").await, Err(Error::ResultLost { .. })));
}

#[tokio::test]
async fn an_s06_without_redis_a_result_goes_to_postgres() {
    let world = ResultsInRedisWorld::new().await;
    let store = ResultsInRedis::new(world.postgres.store(), nobody(), "unused", 0, HOUR);
    let claim = world.claim(&operation("key")).await;
    store.finish(&claim, b"Ok!").await.unwrap();
    assert_eq!(in_postgres(&world.postgres).await, b"Ok!");
    // A store that reaches Redis reads the result from Postgres.
    assert_eq!(world.store().claim(&operation("key")).await.unwrap(), Claimed::Finished(b"Ok!".to_vec()));
}

#[tokio::test]
async fn an_s06_without_redis_a_result_in_redis_may_be_asked_for_again() {
    let world = ResultsInRedisWorld::new().await;
    world.finish(&operation("key"), b"Ok!").await;
    let store = ResultsInRedis::new(world.postgres.store(), nobody(), "unused", 0, HOUR);
    assert!(matches!(store.claim(&operation("key")).await, Err(Error::Redis(_))));
    assert_eq!(world.store().claim(&operation("key")).await.unwrap(), Claimed::Finished(b"Ok!".to_vec()));
}

#[tokio::test]
async fn a_result_that_looks_like_a_reference_is_none() {
    let world = ResultsInRedisWorld::new().await;
    let store = ResultsInRedis::new(
        world.postgres.store(),
        world.redis.client.clone(),
        &world.redis.prefix,
        1000,
        Duration::MAX,
    );
    let claim = world.claim(&operation("key")).await;
    store.finish(&claim, b"\0in redis: elsewhere").await.unwrap();
    let claimed = store.claim(&operation("key")).await.unwrap();
    assert_eq!(claimed, Claimed::Finished(b"\0in redis: elsewhere".to_vec()));
}
