//! The layer around an axum service, on a real socket: harm that its defaults keep away.

use std::sync::Arc;
use std::time::Duration;

use crate::support::server::{Server, assert_text, is_replayed, send};
use crate::support::{RedisWorld, ResultsInRedisWorld, World};
use axum::http::StatusCode;
use bytes::Bytes;
use idempotency::{IdempotencyLayer, Settings, Status, Store};
use jiff::SignedDuration;
use tokio::sync::Notify;

on_every_store! {
    an_answer_that_leaves_the_operation_open_is_not_kept
    the_service_says_which_answers_are_final
    a_client_cannot_let_two_requests_run_at_once
    durations_of_a_client_are_bounded
    callers_do_not_see_each_others_answers_and_credentials_are_not_stored
}

/// Responds with the status in the body.
fn status_in(body: &Bytes) -> StatusCode {
    str::from_utf8(body).unwrap().parse().unwrap()
}

async fn an_answer_that_leaves_the_operation_open_is_not_kept(world: &impl World) {
    let server = Server::with(IdempotencyLayer::new(world.store()), async |nth, body: Bytes| {
        let status = if nth % 2 == 1 { status_in(&body) } else { StatusCode::CREATED };
        (status, format!("ran {nth}"))
    })
    .await;
    for (index, status) in [401, 403, 408, 425, 429, 500, 503].into_iter().enumerate() {
        let post = || send(server.post("/", &format!("key-{status}")).body(status.to_string()));
        assert_text(post().await, status, &format!("ran {}", index * 2 + 1)).await;
        assert_text(post().await, 201, &format!("ran {}", index * 2 + 2)).await;
        assert!(is_replayed(&post().await));
    }
}

async fn the_service_says_which_answers_are_final(world: &impl World) {
    let settings = Settings::default().is_final(|response| !response.headers.contains_key("retry-after"));
    let layer = IdempotencyLayer::new(world.store()).with(settings);
    let server = Server::with(layer, async |nth, body: Bytes| {
        let headers = if nth == 1 { vec![("retry-after", "1")] } else { vec![] };
        (status_in(&body), axum::response::AppendHeaders(headers), format!("ran {nth}"))
    })
    .await;
    assert_text(send(server.post("/", "key").body("409")).await, 409, "ran 1").await;
    for _ in 0..2 {
        assert_text(send(server.post("/", "key").body("409")).await, 409, "ran 2").await;
    }
    assert_text(send(server.post("/", "other").body("503")).await, 503, "ran 3").await;
    assert!(is_replayed(&send(server.post("/", "other").body("503")).await));
}

async fn a_client_cannot_let_two_requests_run_at_once(world: &impl World) {
    let (began, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (began.clone(), go_on.clone());
    let server = Server::with(IdempotencyLayer::new(world.store()), move |nth, _| {
        let (tell, wait) = (tell.clone(), wait.clone());
        async move {
            if nth == 1 {
                tell.notify_one();
                wait.notified().await;
            }
            format!("ran {nth}")
        }
    })
    .await;
    let post = || {
        let request = server.post("/", "key").header("x-idempotency-timeout", "1ns");
        send(request.header("x-idempotency-expiration", "1ns"))
    };
    let first = tokio::spawn(post());
    began.notified().await;
    assert_eq!(post().await.status(), 409);
    go_on.notify_one();
    assert_text(first.await.unwrap(), 200, "ran 1").await;
    assert_text(post().await, 200, "ran 1").await;
    assert_eq!(server.ran(), 1);
}

async fn durations_of_a_client_are_bounded(world: &impl World) {
    let tight = Settings::default()
        .timeout_bounds(Duration::from_secs(5)..=Duration::from_secs(6))
        .expiration_bounds(Duration::from_secs(50)..=Duration::from_secs(60));
    let default = IdempotencyLayer::new(world.store());
    let (hour_s, day_s) = (3600, 24 * 3600);
    for (path, layer, [timeout_min_s, timeout_max_s, expiration_min_s, expiration_max_s]) in
        [("/a", default.clone(), [90, hour_s, 90, 30 * day_s]), ("/b", default.with(tight), [5, 6, 50, 60])]
    {
        let server = Server::with(layer, async |nth, _| format!("ran {nth}")).await;
        for (asked, timeout_s, expiration_s) in [
            ("1ns", timeout_min_s, expiration_min_s),
            ("0", timeout_max_s, expiration_max_s),
            ("2000000h", timeout_max_s, expiration_max_s),
        ] {
            let request = server.post(path, asked).header("x-idempotency-timeout", asked);
            assert_eq!(send(request.header("x-idempotency-expiration", asked)).await.status(), 200);
            let tracked = world.store().find(&format!("[POST]{path}"), asked).await.unwrap().unwrap();
            assert_eq!(tracked.timeout_at, Some(tracked.started_at + SignedDuration::from_secs(timeout_s)), "{asked}");
            let expires_at = tracked.reference_time + SignedDuration::from_secs(expiration_s);
            assert_eq!(tracked.expires_at, Some(expires_at), "{asked}");
        }
    }
}

async fn callers_do_not_see_each_others_answers_and_credentials_are_not_stored(world: &impl World) {
    let server = Server::counting(world).await;
    let post = |token: &str| send(server.post("/", "key").header("authorization", format!("Bearer {token}")));
    for (token, text) in [("badger72", "ran 1"), ("hedgehog51", "ran 2"), ("badger72", "ran 1")] {
        assert_text(post(token).await, 200, text).await;
    }
    assert_text(send(server.post("/", "key")).await, 200, "ran 3").await;
    // The first 16 bytes of SHA-256, by another program: printf 'Bearer badger72' | sha256sum
    let target = "[POST]/ of 32:4b6c915896ac4f9f040cb5b97d12d1ee";
    let tracked = world.store().find(target, "key").await.unwrap().unwrap();
    assert!(!format!("{tracked:?}").contains("badger72"));
    assert!(!String::from_utf8_lossy(&tracked.payload).contains("badger72"));
}

/// Asserts that every key of a store in Redis has a time to live.
async fn assert_all_expire(world: &RedisWorld, at_least: usize) {
    let mut connection = world.connection().await;
    let pattern = format!("{}*", world.prefix);
    let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut connection).await.unwrap();
    assert!(keys.len() >= at_least, "{keys:?}");
    for key in keys {
        let left_ms: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut connection).await.unwrap();
        assert!(left_ms > 0, "{key} stays for ever");
    }
}

#[tokio::test]
async fn whatever_the_layer_puts_into_redis_expires() {
    let world = RedisWorld::new().await;
    let server = Server::with(IdempotencyLayer::new(world.store()), async |nth, body: Bytes| {
        assert!(body != "panic", "a failed operation");
        format!("ran {nth}")
    })
    .await;
    for (key, body, expiration) in [("a", "", "1h"), ("b", "panic", "0"), ("c", "", "100h"), ("d", "panic", "1ns")] {
        send(server.post("/", key).header("x-idempotency-expiration", expiration).body(body)).await;
    }
    let running = crate::support::expiring("running");
    world.claim(&running).await;
    assert_eq!(world.find(&running).await.status, Status::Running);
    // Five operations, three indexes of their statuses, and the index of claims.
    assert_all_expire(&world, 9).await;

    let world = ResultsInRedisWorld::new().await;
    let server = Server::counting(&world).await;
    assert_text(send(server.post("/", "key")).await, 200, "ran 1").await;
    assert_all_expire(&world.redis, 1).await;
}

/// Without a sweeper, the indexes lose the operations that are gone.
#[tokio::test]
async fn an_index_in_redis_does_not_grow_for_ever() {
    let world = RedisWorld::new().await;
    let mut connection = world.connection().await;
    for number in 0..30 {
        let request = crate::support::expiring(&format!("key-{number:02}"));
        world.finish(&request, b"Ok!").await;
        let operation = format!("{}:{{{}}}:{}", world.prefix, request.target, request.key);
        redis::cmd("DEL").arg(operation).exec_async(&mut connection).await.unwrap();
    }
    let index = format!("{}:expires:finished", world.prefix);
    let len: usize = redis::cmd("ZCARD").arg(index).query_async(&mut connection).await.unwrap();
    assert!(len < 10, "{len}");
}
