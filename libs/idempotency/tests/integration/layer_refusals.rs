//! The layer around an axum service, on a real socket (AN-S02): which requests are refused, with which status and text.

use std::sync::Arc;
use std::time::Duration;

use crate::support::server::{Server, assert_refused, assert_text, is_replayed, retry_after_s, send};
use crate::support::{PostgresWorld, ResultsInRedisWorld, World};
use idempotency::{IdempotencyLayer, PostgresStore, RedisStore, Store};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

on_every_store! {
    a_key_may_be_required
    an_s13_bad_headers_are_400
    an_17_another_payload_under_the_same_key_is_409
    what_is_running_is_409_with_retry_after
    what_came_too_late_is_410
    a_body_that_is_too_long_is_413
}

async fn a_key_may_be_required(world: &impl World) {
    let layer = IdempotencyLayer::new(world.store()).require_key();
    let server = Server::with(layer, async |nth, _| format!("ran {nth}")).await;
    let text = "Please specify an idempotency key with the Idempotency-Key header.";
    assert_refused(send(server.client.post(format!("http://{}/", server.address))).await, 400, text).await;
    assert_text(send(server.post("/", "key")).await, 200, "ran 1").await;
}

async fn an_s13_bad_headers_are_400(world: &impl World) {
    let server = Server::counting(world).await;
    for key in ["", "\"\"", "\"open", &"x".repeat(256)] {
        assert_refused(send(server.post("/", key)).await, 400, "Invalid Idempotency-Key").await;
    }
    let twice = server.post("/", "a").header("idempotency-key", "b");
    assert_refused(send(twice).await, 400, "Invalid Idempotency-Key").await;
    for (name, value) in [("Reference-Time", "yesterday"), ("Timeout", "10"), ("Expiration", "-1h")] {
        let name = format!("X-Idempotency-{name}");
        let response = send(server.post("/", "key").header(&name, value)).await;
        assert_refused(response, 400, &format!("Invalid {name}")).await;
    }
    let long = format!("/{}", "x".repeat(500));
    let text = "The target of an operation needs 1 to 500 characters.";
    assert_refused(send(server.post(&long, "key")).await, 400, text).await;
    assert_eq!(server.ran(), 0);
}

async fn an_17_another_payload_under_the_same_key_is_409(world: &impl World) {
    let server = Server::counting(world).await;
    let post = |path: &str, body: &'static str| send(server.post(path, "key").body(body));
    assert_text(post("/rides?a=1", "body").await, 200, "ran 1").await;
    let text = "Operation [POST]/rides was asked for with another payload under key key.";
    for (path, body) in [("/rides?a=1", "other"), ("/rides?a=2", "body"), ("/rides", "body"), ("/rides?a=1", "")] {
        assert_refused(post(path, body).await, 409, text).await;
    }
    assert_text(post("/rides?a=1", "body").await, 200, "ran 1").await;
    // Another path is another operation.
    assert_text(post("/tips?a=1", "body").await, 200, "ran 2").await;
    let tracked = world.store().find("[POST]/rides", "key").await.unwrap().unwrap();
    assert_eq!(tracked.payload, b"POST /rides?a=1\nbody");
}

/// A server whose handler reports when it begins, and then waits for a permit.
async fn waiting(world: &impl World) -> (Server, Arc<Notify>, Arc<Notify>) {
    let (began, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (began.clone(), go_on.clone());
    let server = Server::with(IdempotencyLayer::new(world.store()), move |nth, _| {
        let (tell, wait) = (tell.clone(), wait.clone());
        async move {
            tell.notify_one();
            wait.notified().await;
            format!("ran {nth}")
        }
    })
    .await;
    (server, began, go_on)
}

async fn what_is_running_is_409_with_retry_after(world: &impl World) {
    let (server, began, go_on) = waiting(world).await;
    let first = tokio::spawn(send(server.post("/", "key")));
    began.notified().await;
    let response = send(server.post("/", "key")).await;
    assert!((1..=90).contains(&retry_after_s(&response)), "{}", retry_after_s(&response));
    assert_refused(response, 409, "Operation [POST]/ still running for key key.").await;

    go_on.notify_one();
    assert_text(first.await.unwrap(), 200, "ran 1").await;
    let again = send(server.post("/", "key")).await;
    assert!(is_replayed(&again));
    assert_text(again, 200, "ran 1").await;
    assert_eq!(server.ran(), 1);
}

async fn what_came_too_late_is_410(world: &impl World) {
    let server = Server::counting(world).await;
    let an_hour_ago = (Timestamp::now() - SignedDuration::from_hours(1)).to_string();
    let late = |key| {
        server
            .post("/", key)
            .header("x-idempotency-reference-time", &an_hour_ago)
            .header("x-idempotency-expiration", "59m59.9s")
    };
    assert_refused(send(late("key")).await, 410, "Operation [POST]/ expired for key key.").await;
    assert!(world.store().find("[POST]/", "key").await.unwrap().is_none());
    assert_eq!(server.ran(), 0);
}

async fn a_body_that_is_too_long_is_413(world: &impl World) {
    let server = Server::counting(world).await;
    assert_eq!(send(server.post("/", "fits").body(vec![0; 64 * 1024])).await.status(), 200);
    let response = send(server.post("/", "long").body(vec![0; 64 * 1024 + 1])).await;
    assert_refused(response, 413, "The body is longer than 65536 bytes.").await;
    assert_eq!(server.ran(), 1);

    let layer = IdempotencyLayer::new(world.store()).body_len_max(3);
    let server = Server::with(layer, async |nth, _| format!("ran {nth}")).await;
    assert_refused(send(server.post("/", "own").body("four")).await, 413, "The body is longer than 3 bytes.").await;
}

#[tokio::test]
async fn a_store_that_is_away_is_503_with_retry_after() {
    // No server listens on this port.
    let config = "postgres://nobody@127.0.0.1:1/nothing".parse().unwrap();
    let manager = deadpool_postgres::Manager::new(config, tokio_postgres::NoTls);
    let postgres = PostgresStore::new(deadpool_postgres::Pool::builder(manager).build().unwrap());
    let redis = RedisStore::new(redis::Client::open("redis://127.0.0.1:1/").unwrap(), "idempotency");
    let handler = async |nth, _| format!("ran {nth}");
    let servers = [
        Server::with(IdempotencyLayer::new(postgres), handler).await,
        Server::with(IdempotencyLayer::new(redis), handler).await,
    ];
    for server in servers {
        let response = send(server.post("/", "key")).await;
        assert_eq!(retry_after_s(&response), 1);
        let text = "Operations cannot be tracked at the moment. Please retry with the same Idempotency-Key.";
        assert_refused(response, 503, text).await;
        assert_eq!(server.ran(), 0);
    }
}

#[tokio::test]
async fn an_operation_that_was_overtaken_is_409_with_retry_after() {
    let world = Arc::new(PostgresWorld::new().await);
    let in_handler = world.clone();
    let server = Server::with(IdempotencyLayer::new(world.store()), move |nth, _| {
        let world = in_handler.clone();
        async move {
            // A second process claims it while the handler is busy.
            let statement = "UPDATE tracked_operations SET token = token + 1";
            world.client().await.execute(statement, &[]).await.unwrap();
            format!("ran {nth}")
        }
    })
    .await;
    let response = send(server.post("/", "key")).await;
    assert_eq!(retry_after_s(&response), 1);
    assert_refused(response, 409, "The operation took too long and was claimed again.").await;
}

#[tokio::test]
async fn an_s06_a_lost_result_is_410() {
    let world = ResultsInRedisWorld::new().await;
    let server = Server::counting(&world).await;
    assert_text(send(server.post("/", "key")).await, 200, "ran 1").await;
    let mut connection = world.redis.connection().await;
    let pattern = format!("{}:result:*", world.redis.prefix);
    let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut connection).await.unwrap();
    assert_eq!(keys.len(), 1);
    redis::cmd("DEL").arg(keys).query_async::<()>(&mut connection).await.unwrap();
    let text = "Operation [POST]/ was done for key key, but its result is not kept any more.";
    for _ in 0..2 {
        assert_refused(send(server.post("/", "key")).await, 410, text).await;
    }
    assert_eq!(server.ran(), 1);
}

#[tokio::test]
async fn what_is_stored_but_no_answer_is_500() {
    let world = PostgresWorld::new().await;
    let server = Server::counting(&world).await;
    let request = idempotency::Operation::new("[POST]/", "key", "POST /\n", Duration::from_secs(60));
    world.finish(&request, b"of another program").await;
    let text = "Internal server error. Please retry the request with the same Idempotency-Key.";
    assert_refused(send(server.post("/", "key")).await, 500, text).await;
    assert_eq!(server.ran(), 0);
}
