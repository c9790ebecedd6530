//! The layer around an axum service, on a real socket (AN-S02): which responses are stored and replayed.

#[allow(dead_code, reason = "its main is for people")]
#[path = "../../examples/hello.rs"]
mod hello;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::support::server::{Server, assert_refused, assert_text, is_replayed, retry_after_s, send};
use crate::support::{World, wait_until};
use axum::Router;
use axum::body::Body;
use axum::extract::Request as AxumRequest;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::routing::{get, post};
use bytes::Bytes;
use idempotency::{IdempotencyLayer, Invalid, Settings, Status, Store, value};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

on_every_store! {
    an_19_two_equal_calls_are_handled_once
    an_answer_is_given_again_byte_for_byte
    refusals_and_redirections_are_answers_too
    an_answer_of_5xx_is_passed_on_and_may_be_tried_again
    a_panic_is_500_and_may_be_tried_again
    a_request_without_a_key_passes_through
    a_key_is_bare_or_quoted_under_either_name
    an_16_time_headers_are_those_of_the_operation
    an_answer_that_is_too_long_is_said_to_be
    the_handler_goes_on_when_the_client_leaves
    an_17_a_route_settles_over_what_is_shared_over_the_defaults
    fifty_equal_requests_are_handled_once
    the_documented_service_keeps_users_apart
    an_answer_that_breaks_off_is_500_and_may_be_tried_again
}

async fn an_19_two_equal_calls_are_handled_once(world: &impl World) {
    let ran = Arc::new(AtomicU32::new(0));
    let said = ran.clone();
    let say = move |line: &str| {
        assert_eq!(line, "Not persisted!");
        said.fetch_add(1, Ordering::SeqCst);
    };
    let server = Server::of(hello::router(world.store(), say), ran).await;
    let get = |path: &str, key: &str| {
        send(server.client.get(format!("http://{}{path}", server.address)).header("x-idempotency-key", key))
    };
    for _ in 0..2 {
        assert_text(get("/", "World").await, 200, "Hello World!").await;
    }
    assert_eq!(server.ran(), 1);
    assert_text(get("/", "Mars").await, 200, "Hello Mars!").await;
    assert_text(get("/any/path", "World").await, 200, "Hello World!").await;
    assert_eq!(server.ran(), 3);
}

async fn an_answer_is_given_again_byte_for_byte(world: &impl World) {
    let bytes: Vec<u8> = (0..=255).collect();
    let server = Server::with(IdempotencyLayer::new(world.store()), async |nth, body| {
        let headers = [
            ("content-type", "image/png".to_owned()),
            ("location", format!("/rides/{nth}")),
            ("set-cookie", "a=1".to_owned()),
        ];
        (StatusCode::CREATED, headers, body)
    })
    .await;
    let first = send(server.post("/", "key").body(bytes.clone())).await;
    assert_eq!((first.status().as_u16(), is_replayed(&first)), (201, false));
    assert_eq!(first.headers()["set-cookie"], "a=1");
    let again = send(server.post("/", "key").body(bytes.clone())).await;
    assert_eq!((again.status().as_u16(), is_replayed(&again)), (201, true));
    for name in ["content-type", "location", "content-length"] {
        assert_eq!(first.headers()[name], again.headers()[name], "{name}");
    }
    // A replay has only the headers that belong to the response itself.
    assert!(!again.headers().contains_key("set-cookie"));
    assert_eq!(first.bytes().await.unwrap(), bytes);
    assert_eq!(again.bytes().await.unwrap(), bytes);
    assert_eq!(server.ran(), 1);
}

async fn refusals_and_redirections_are_answers_too(world: &impl World) {
    let server = Server::with(IdempotencyLayer::new(world.store()), async |nth, body: Bytes| {
        let status: u16 = str::from_utf8(&body).unwrap().parse().unwrap();
        (StatusCode::from_u16(status).unwrap(), [("location", "/elsewhere")], format!("ran {nth}"))
    })
    .await;
    for (index, status) in [200, 202, 303, 400, 402, 404, 409, 422, 499].into_iter().enumerate() {
        for is_again in [false, true] {
            let response = send(server.post("/", &format!("key-{status}")).body(status.to_string())).await;
            assert_eq!(is_replayed(&response), is_again, "{status}");
            assert_eq!(response.headers()["location"], "/elsewhere");
            assert_text(response, status, &format!("ran {}", index + 1)).await;
        }
    }
}

async fn an_answer_of_5xx_is_passed_on_and_may_be_tried_again(world: &impl World) {
    let server = Server::with(IdempotencyLayer::new(world.store()), async |nth, _| {
        let status = if nth < 3 { StatusCode::BAD_GATEWAY } else { StatusCode::OK };
        (status, [("x-nth", nth.to_string())], format!("ran {nth}"))
    })
    .await;
    for nth in 1..=2 {
        let response = send(server.post("/", "key")).await;
        assert_eq!(response.headers()["x-nth"], nth.to_string());
        assert_text(response, 502, &format!("ran {nth}")).await;
        let tracked = world.store().find("[POST]/", "key").await.unwrap().unwrap();
        assert_eq!((tracked.status, tracked.error_count), (Status::Failed, nth));
        assert_eq!(tracked.error_message.as_deref(), Some("answered 502 Bad Gateway"));
    }
    for _ in 0..2 {
        assert_text(send(server.post("/", "key")).await, 200, "ran 3").await;
    }
    assert_eq!(server.ran(), 3);
}

async fn a_panic_is_500_and_may_be_tried_again(world: &impl World) {
    let server = Server::with(IdempotencyLayer::new(world.store()), async |nth, _| {
        assert!(nth > 1, "a secret");
        format!("ran {nth}")
    })
    .await;
    let text = "Internal server error. Please retry the request with the same Idempotency-Key.";
    assert_refused(send(server.post("/", "key")).await, 500, text).await;
    let tracked = world.store().find("[POST]/", "key").await.unwrap().unwrap();
    assert_eq!((tracked.status, tracked.error_message.as_deref()), (Status::Failed, Some(r#"Got panic "a secret""#)));
    assert_text(send(server.post("/", "key")).await, 200, "ran 2").await;
}

async fn a_request_without_a_key_passes_through(world: &impl World) {
    let server = Server::with(IdempotencyLayer::new(world.store()), async |nth, body: Bytes| {
        format!("ran {nth} with {}", body.len())
    })
    .await;
    // Its body is not bounded either, because it is not stored.
    for nth in 1..=2 {
        let request = server.client.post(format!("http://{}/", server.address)).body(vec![0; 100_000]);
        assert_text(send(request).await, 200, &format!("ran {nth} with 100000")).await;
    }
}

async fn a_key_is_bare_or_quoted_under_either_name(world: &impl World) {
    let server = Server::counting(world).await;
    for name in ["Idempotency-Key", "X-Idempotency-Key"] {
        for key in ["a \"b\"", r#""a \"b\"""#] {
            let request = server.client.post(format!("http://{}/", server.address)).header(name, key);
            assert_text(send(request).await, 200, "ran 1").await;
        }
    }
    assert_eq!(world.store().find("[POST]/", "a \"b\"").await.unwrap().unwrap().status, Status::Finished);
}

async fn an_16_time_headers_are_those_of_the_operation(world: &impl World) {
    let server = Server::counting(world).await;
    let reference_time = Timestamp::now().round(jiff::Unit::Second).unwrap() - SignedDuration::from_hours(1);
    let request = server
        .post("/", "key")
        .header("x-idempotency-reference-time", reference_time.to_string().replace('Z', "+00:00"))
        .header("x-idempotency-timeout", "2.5m")
        .header("x-idempotency-expiration", "48h");
    assert_eq!(send(request).await.status(), 200);
    let tracked = world.store().find("[POST]/", "key").await.unwrap().unwrap();
    assert_eq!(tracked.reference_time, reference_time);
    assert_eq!(tracked.timeout_at, Some(tracked.started_at + SignedDuration::from_secs(150)));
    assert_eq!(tracked.expires_at, Some(reference_time + SignedDuration::from_hours(48)));

    assert_eq!(send(server.post("/", "default")).await.status(), 200);
    let tracked = world.store().find("[POST]/", "default").await.unwrap().unwrap();
    assert_eq!(tracked.timeout_at, Some(tracked.started_at + SignedDuration::from_secs(90)));
    assert_eq!(tracked.expires_at, Some(tracked.created_at + SignedDuration::from_hours(24)));
}

async fn an_answer_that_is_too_long_is_said_to_be(world: &impl World) {
    let server = Server::with(IdempotencyLayer::new(world.store()), async |_, body: Bytes| {
        vec![b'x'; str::from_utf8(&body).unwrap().parse().unwrap()]
    })
    .await;
    let fits = send(server.post("/", "fits").body("1048576")).await;
    assert_eq!((fits.status().as_u16(), fits.bytes().await.unwrap().len()), (200, 1 << 20));
    for is_again in [false, true] {
        let response = send(server.post("/", "long").body("1048577")).await;
        assert_eq!((response.status().as_u16(), is_replayed(&response)), (500, is_again));
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"], "The operation was done, but its answer is too long to be kept.");
    }
    // The work was done, and is not done again.
    assert_eq!(server.ran(), 2);
}

/// Reports when it is dropped.
struct Leaving(Arc<Notify>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

async fn the_handler_goes_on_when_the_client_leaves(world: &impl World) {
    let (began, go_on, left) = (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait, gone) = (began.clone(), go_on.clone(), left.clone());
    let handler = async move || {
        tell.notify_one();
        wait.notified().await;
        "done"
    };
    // Outside of the layer: hyper drops this when the client has left.
    let watch = move |request: AxumRequest, next: Next| {
        let leaving = Leaving(gone.clone());
        async move {
            let response = next.run(request).await;
            drop(leaving);
            response
        }
    };
    let router = Router::new()
        .route("/", post(handler))
        .layer(IdempotencyLayer::new(world.store()))
        .layer(middleware::from_fn(watch));
    let server = Server::of(router, Arc::default()).await;

    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    let request = b"POST / HTTP/1.1\r\nhost: localhost\r\nidempotency-key: key\r\ncontent-length: 0\r\n\r\n";
    socket.write_all(request).await.unwrap();
    began.notified().await;
    drop(socket);
    left.notified().await;
    let running = world.store().find("[POST]/", "key").await.unwrap().unwrap();
    assert_eq!(running.status, Status::Running);
    go_on.notify_one();
    wait_until("the result is stored", async || {
        world.store().find("[POST]/", "key").await.unwrap().unwrap().status == Status::Finished
    })
    .await;
    let again = send(server.post("/", "key")).await;
    assert!(is_replayed(&again));
    assert_text(again, 200, "done").await;
}

async fn an_17_a_route_settles_over_what_is_shared_over_the_defaults(world: &impl World) {
    let at: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let century = Some(Duration::from_secs(100 * 365 * 24 * 3600));
    let shared = Settings::default()
        .target(value("shared".to_owned()))
        .timeout(value(Some(Duration::from_secs(10))))
        .reference_time(value(Some(at)))
        .expiration(value(century));
    let route = Settings::default()
        .target(|parts| Ok(format!("route of {}", parts.headers["user"].to_str().unwrap())))
        .key(|parts| {
            let key = parts.headers.get("request-id").ok_or_else(|| Invalid("a request-id is needed".to_owned()))?;
            Ok(Some(key.to_str().unwrap().to_owned()))
        })
        .payload(|parts, body| Ok(format!("{} {}", parts.uri.path(), body.len()).into_bytes()));
    let layer = IdempotencyLayer::new(world.store()).with(shared);
    let handler = async |headers: HeaderMap| format!("{} headers", headers.len());
    let router = Router::new()
        .route("/route", get(handler).layer(layer.clone().with(route)))
        .route("/shared", get(handler).layer(layer));
    let server = Server::of(router, Arc::default()).await;
    let get = |path: &str| server.client.get(format!("http://{}{path}", server.address));

    assert_eq!(send(get("/shared").header("idempotency-key", "a")).await.status(), 200);
    let tracked = world.store().find("shared", "a").await.unwrap().unwrap();
    assert_eq!(tracked.payload, b"GET /shared\n");
    assert_eq!(tracked.timeout_at, Some(tracked.started_at + SignedDuration::from_secs(10)));
    assert_eq!(tracked.reference_time, at);

    let request = get("/route?x=1").header("user", "jane").header("request-id", "7").body("abc");
    assert_eq!(send(request).await.status(), 200);
    let tracked = world.store().find("route of jane", "7").await.unwrap().unwrap();
    assert_eq!(tracked.payload, b"/route 3");
    assert_eq!(tracked.timeout_at, Some(tracked.started_at + SignedDuration::from_secs(10)));
    // Another URL, and the same payload by the settings of this route.
    let again = send(get("/route?x=2").header("user", "jane").header("request-id", "7").body("cba")).await;
    assert!(is_replayed(&again));
    assert_refused(send(get("/route")).await, 400, "a request-id is needed").await;
}

async fn fifty_equal_requests_are_handled_once(world: &impl World) {
    let server = Server::counting(world).await;
    let requests = (0..50).map(|_| send(server.post("/", "key").body("body")));
    for response in futures_util::future::join_all(requests).await {
        if response.status() == 409 {
            assert!(retry_after_s(&response) >= 1);
        } else {
            assert_text(response, 200, "ran 1").await;
        }
    }
    assert_eq!(server.ran(), 1);
}

async fn an_answer_that_breaks_off_is_500_and_may_be_tried_again(world: &impl World) {
    let server = Server::with(IdempotencyLayer::new(world.store()), async |nth, _| {
        let chunks = [Ok("half"), if nth == 1 { Err("broken") } else { Ok(" and half") }];
        Body::from_stream(futures_util::stream::iter(chunks))
    })
    .await;
    let text = "Internal server error. Please retry the request with the same Idempotency-Key.";
    assert_refused(send(server.post("/", "key")).await, 500, text).await;
    for _ in 0..2 {
        assert_text(send(server.post("/", "key")).await, 200, "half and half").await;
    }
    assert_eq!(server.ran(), 2);
}

#[derive(Clone)]
struct UserId(i64);

/// The router of the library's front page.
fn documented<S: Store>(store: S) -> Router {
    // Two users may choose the same key. Your own layer, around this one, has authenticated the user. Without a scope, a hash of
    // the header `Authorization` keeps users apart.
    let settings = Settings::default().scope(|parts| Ok(parts.extensions.get().map(|UserId(id)| id.to_string())));
    let layer = IdempotencyLayer::new(store).with(settings);
    // A route may override the shared settings.
    let quick = layer.clone().with(Settings::default().timeout(value(Some(Duration::from_secs(10)))));
    Router::new()
        .route("/rides", post(async || "a ride").layer(layer.require_key()))
        .route("/tips", post(async |tip: String| tip).layer(quick))
}

async fn the_documented_service_keeps_users_apart(world: &impl World) {
    // The tokens of the users are renewed, and a user is found by any of them.
    let authenticate = async |mut request: AxumRequest, next: Next| {
        let user_id = request.headers().get("authorization").map(|token| token.len() as i64);
        if let Some(id) = user_id {
            request.extensions_mut().insert(UserId(id));
        }
        next.run(request).await
    };
    let router = documented(world.store()).layer(middleware::from_fn(authenticate));
    let server = Server::of(router, Arc::default()).await;
    for (user, tip) in [("jane", "5"), ("joe", "7")] {
        for is_again in [false, true] {
            let token = if is_again { user.to_uppercase() } else { user.to_owned() };
            let response = send(server.post("/tips", "key").header("authorization", token).body(tip)).await;
            assert_eq!(is_replayed(&response), is_again);
            assert_text(response, 200, tip).await;
        }
        let tracked = world.store().find(&format!("[POST]/tips of 1:{}", user.len()), "key").await.unwrap().unwrap();
        assert_eq!(tracked.timeout_at, Some(tracked.started_at + SignedDuration::from_secs(10)));
    }
    assert_eq!(send(server.client.post(format!("http://{}/rides", server.address))).await.status(), 400);
    assert_text(send(server.post("/rides", "key")).await, 200, "a ride").await;
}
