//! The webhook against servers that respond in every way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect};
use axum::routing::post;
use bytes::Bytes;
use container::destination::{Destination, Outcome, Refusal};
use container::webhook::{Reach, Secret, Webhook};
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::world::{SECRET, serve, unit, webhook};

/// The refusal of a store by a server that always responds so.
async fn refusal<R: IntoResponse + Clone + Send + Sync + 'static>(response: R) -> Refusal {
    let url = serve(Router::new().fallback(post(async move || response.clone()))).await;
    match webhook(&url, SECRET).store(&unit(1, "7", 2)).await {
        Outcome::Failed(refusal) => refusal,
        outcome => panic!("{outcome:?} is no failure"),
    }
}

#[tokio::test]
async fn a_request_is_signed_and_says_which_attempt_it_is_about() {
    let (sent, mut received) = mpsc::channel(2);
    let router = Router::new().fallback(post(async move |headers: HeaderMap, body: Bytes| {
        sent.send((headers, body)).await.unwrap();
        StatusCode::NO_CONTENT
    }));
    let (webhook, unit) = (webhook(&serve(router).await, SECRET), unit(17, "7", 2));
    assert_eq!(webhook.store(&unit).await, Outcome::Stored);
    webhook.undo(unit.reference()).await.unwrap();
    for action in ["store", "undo"] {
        let (headers, body) = received.recv().await.unwrap();
        assert_eq!(headers["webhook-id"], format!("{}-1-{action}", unit.key));
        assert_eq!(headers["content-type"], "application/json");
        standardwebhooks::Webhook::new(SECRET).unwrap().verify(&body, &headers).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["type"], format!("manifests.{action}"));
        let data = &body["data"];
        assert_eq!(data["unit"], unit.key.to_string());
        assert_eq!((&data["attempt"], &data["uow"], &data["subject"]), (&1.into(), &17.into(), &"7".into()));
        let document = serde_json::from_slice::<Value>(&unit.document).unwrap();
        assert_eq!(data.get("document"), (action == "store").then_some(&document));
    }
}

#[tokio::test]
async fn every_2xx_counts_as_told() {
    for status in [StatusCode::OK, StatusCode::CREATED, StatusCode::ACCEPTED, StatusCode::NO_CONTENT] {
        let webhook = webhook(&serve(Router::new().fallback(post(async move || status))).await, SECRET);
        let unit = unit(1, "7", 2);
        assert_eq!(webhook.store(&unit).await, Outcome::Stored);
        assert_eq!(webhook.undo(unit.reference()).await, Ok(()));
    }
}

#[tokio::test]
async fn statuses_come_as_they_are_and_some_are_passing() {
    for (status, is_passing) in [
        (400, false),
        (401, false),
        (404, false),
        (408, true),
        (409, false),
        (410, false),
        (413, false),
        (425, true),
        (429, true),
        (500, true),
        (501, true),
        (503, true),
        (507, true),
        (599, true),
    ] {
        let refusal = refusal((StatusCode::from_u16(status).unwrap(), "the reason\0")).await;
        assert_eq!((refusal.status, refusal.is_passing()), (status, is_passing));
        assert!(refusal.reason.ends_with("the reason "), "{refusal}");
        assert_eq!(refusal.retry_after, None);
    }
    // A status that HTTP does not know is a fault of the server.
    assert_eq!(refusal(StatusCode::from_u16(999).unwrap()).await.status, 502);
}

#[tokio::test]
async fn an_undo_of_a_thing_that_is_gone_is_told_and_every_other_error_is_not() {
    for (status, is_told) in [(404, true), (410, true), (400, false), (409, false), (429, false), (500, false)] {
        let status = StatusCode::from_u16(status).unwrap();
        let webhook = webhook(&serve(Router::new().fallback(post(async move || status))).await, SECRET);
        let told = webhook.undo(unit(1, "7", 2).reference()).await;
        assert_eq!(told.is_ok(), is_told, "{status}: {told:?}");
    }
}

#[tokio::test]
async fn the_wait_that_a_server_asks_for_is_reported() {
    let seconds = refusal((StatusCode::TOO_MANY_REQUESTS, [("retry-after", "7")])).await;
    assert_eq!((seconds.status, seconds.retry_after), (429, Some(Duration::from_secs(7))));
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
    let dated = refusal((StatusCode::SERVICE_UNAVAILABLE, [("retry-after", date)])).await;
    let wait = dated.retry_after.unwrap();
    assert!((Duration::from_secs(60)..=Duration::from_secs(100)).contains(&wait), "{wait:?}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let elsewhere = serve(Router::new().fallback(async move || {
        counted.fetch_add(1, Ordering::Relaxed);
    }))
    .await;
    for redirect in [Redirect::to, Redirect::temporary, Redirect::permanent] {
        let to = elsewhere.clone();
        let url = serve(Router::new().fallback(post(async move || redirect(to.as_str())))).await;
        let outcome = webhook(&url, SECRET).store(&unit(1, "7", 2)).await;
        let Outcome::Failed(refusal) = outcome else { panic!("{outcome:?}") };
        assert_eq!(refusal.status, 502);
        assert!(refusal.reason.contains("redirects"), "{refusal}");
    }
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

/// A body without an end, and the count of its bytes that were sent.
fn endless() -> (Body, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let pieces = stream::repeat_with(move || {
        counted.fetch_add(1024, Ordering::Relaxed);
        Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 1024]))
    });
    (Body::from_stream(pieces), count)
}

#[tokio::test]
async fn an_endless_body_is_read_up_to_its_bound() {
    for status in [StatusCode::OK, StatusCode::INTERNAL_SERVER_ERROR] {
        let (sent, mut counts) = mpsc::channel(1);
        let router = Router::new().fallback(post(async move || {
            let (body, count) = endless();
            sent.send(count).await.unwrap();
            (status, body)
        }));
        let (webhook, began) = (webhook(&serve(router).await, SECRET), Instant::now());
        match webhook.store(&unit(1, "7", 2)).await {
            Outcome::Stored => assert_eq!(status, StatusCode::OK),
            Outcome::Failed(refusal) => {
                assert_eq!(refusal.status, 500);
                assert!(refusal.reason.len() < 300, "{refusal}");
            }
            outcome @ Outcome::Declined => panic!("{outcome:?}"),
        }
        assert!(began.elapsed() < Duration::from_secs(5), "it reads until the time-out");
        // The buffers of both sockets hold some megabytes more than the webhook reads.
        let count = counts.recv().await.unwrap().load(Ordering::Relaxed);
        assert!(count < 32 << 20, "{count} bytes were sent");
    }
}

fn impatient(url: &reqwest::Url) -> Webhook {
    let secret = Secret::parse(SECRET).unwrap();
    Webhook::new(url, secret, Duration::from_millis(300), Reach::Private).unwrap()
}

#[tokio::test]
async fn a_server_that_does_not_respond_is_given_up() {
    let url = serve(Router::new().fallback(post(async || std::future::pending::<()>().await))).await;
    let (webhook, unit, began) = (impatient(&url), unit(1, "7", 2), Instant::now());
    let outcome = webhook.store(&unit).await;
    assert!(
        matches!(&outcome, Outcome::Failed(refusal) if refusal.status == 504 && refusal.is_passing()),
        "{outcome:?}"
    );
    assert_eq!(webhook.undo(unit.reference()).await.unwrap_err().status, 504);
    assert!(began.elapsed() < Duration::from_secs(10), "each is given up after 0.3 s");
}

#[tokio::test]
async fn a_body_that_does_not_end_in_time_changes_nothing() {
    for status in [StatusCode::OK, StatusCode::BAD_REQUEST] {
        let url = serve(Router::new().fallback(post(async move || {
            let begun = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"the beginning")) });
            (status, Body::from_stream(begun.chain(stream::pending())))
        })))
        .await;
        let (webhook, unit) = (impatient(&url), unit(1, "7", 2));
        let outcome = timeout(Duration::from_secs(10), webhook.store(&unit)).await;
        match outcome.expect("it waits for the body") {
            Outcome::Failed(refusal) => {
                assert_eq!((refusal.status, status), (400, StatusCode::BAD_REQUEST));
                assert!(refusal.reason.contains("the beginning"), "{refusal}");
            }
            outcome => assert_eq!((outcome, status), (Outcome::Stored, StatusCode::OK)),
        }
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_a_passing_failure() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let outcome = webhook(&url, SECRET).store(&unit(1, "7", 2)).await;
    assert!(matches!(&outcome, Outcome::Failed(refusal) if refusal.status == 502), "{outcome:?}");
}
