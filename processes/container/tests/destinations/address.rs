//! A webhook connects to no private address, unless that is allowed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use container::destination::{Destination, Outcome};
use container::webhook::{Reach, Secret, Webhook};
use reqwest::Url;
use tokio::net::TcpListener;

use crate::world::{SECRET, unit};

fn open(url: &str, reach: Reach) -> anyhow::Result<Webhook> {
    let url: Url = url.parse().unwrap();
    Webhook::new(&url, Secret::parse(SECRET).unwrap(), Duration::from_secs(10), reach)
}

/// A server on every address of this machine, which counts its requests.
async fn counting_server() -> (u16, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let router = Router::new().fallback(post(async move || {
        counted.fetch_add(1, Ordering::Relaxed);
    }));
    let listener = TcpListener::bind("[::]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (port, count)
}

/// This machine, in the ways that a URL can write its address.
const THIS_MACHINE: [&str; 6] = ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0177.0.0.1"];

#[tokio::test]
async fn a_private_address_in_the_url_is_refused_at_the_start() {
    for host in THIS_MACHINE.into_iter().chain(["10.0.0.1", "169.254.169.254", "[fd00::1]", "0.0.0.0", "[::]"]) {
        let error = open(&format!("http://{host}:80/"), Reach::Public).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains("allow_private = true")), "{host}: {error:?}");
    }
    for host in ["1.1.1.1", "[2606:4700::1111]", "hooks.example.com"] {
        assert!(open(&format!("https://{host}/"), Reach::Public).is_ok(), "{host}");
    }
}

#[tokio::test]
async fn a_name_of_a_private_address_is_refused_before_it_is_connected() {
    let (port, count) = counting_server().await;
    for host in ["localhost", "LOCALHOST"] {
        let webhook = open(&format!("http://{host}:{port}/"), Reach::Public).unwrap();
        let outcome = webhook.store(&unit(1, "7", 2)).await;
        let Outcome::Failed(refusal) = outcome else { panic!("{host}: {outcome:?}") };
        assert_eq!(refusal.status, 502, "another attempt is worth it when the name is mended: {refusal}");
        assert!(refusal.reason.contains("allow_private"), "{refusal}");
    }
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn private_addresses_are_connected_if_that_is_allowed() {
    let (port, count) = counting_server().await;
    for host in THIS_MACHINE.into_iter().chain(["localhost"]) {
        let webhook = open(&format!("http://{host}:{port}/"), Reach::Private).unwrap();
        assert_eq!(webhook.store(&unit(1, "7", 2)).await, Outcome::Stored, "{host}");
    }
    assert_eq!(count.load(Ordering::Relaxed), THIS_MACHINE.len() + 1);
}

#[test]
fn a_url_that_cannot_be_used_is_refused_with_the_reason() {
    let cases = [
        ("ftp://example.com/", "http://"),
        ("http://user:password@example.com/", "password"),
        ("http://user@example.com/", "password"),
        ("http://example.com/#there", "#"),
    ];
    for (url, reason) in cases {
        let error = open(url, Reach::Private).err().unwrap().to_string();
        assert!(error.contains(reason), "{url}: {error}");
    }
}
