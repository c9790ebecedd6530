//! Between a client and a server: the names that a server answers to, and reverse proxies.

use std::path::Path;

use reqwest::{Client, RequestBuilder};
use serde_json::Value;
use tests::{Payments, Process, Watched, World, binary, scratch_folder};
use tokio::process::Command;

use crate::booking_fixture::{JOURNEY, KEY, USER};

/// Every server of these processes, which keep their data in `folder`: a URL whose response is 200. The processes run as long as
/// the result is kept.
async fn servers(world: &World, folder: &Path, hosts: &str) -> (Vec<String>, Vec<Watched>) {
    let data = folder.join("data").display().to_string();
    let (mut urls, mut running) = (Vec::new(), Vec::new());
    for (name, flags, started, path) in [
        ("api", vec!["--api-port", "0"], "api started", "/healthz"),
        ("dashboard", vec!["--dashboard-port", "0"], "dashboard started", "/"),
        ("payments", vec!["--payments-port", "0", "--faults", "--data", &data], "payments started", "/healthz"),
        ("streamer", vec![], "monitor started", "/metrics"),
    ] {
        let mut watched = Watched::start(world, name, &[&flags[..], &["--http-hosts", hosts]].concat()).await;
        urls.push(format!("http://{}/livez", watched.address()));
        urls.push(format!("http://{}{path}", watched.process.address_after(started).await));
        running.push(watched);
    }
    (urls, running)
}

async fn status(request: RequestBuilder) -> u16 {
    request.send().await.unwrap().status().as_u16()
}

/// An attacker's page may have pointed its own name at the address of a server.
#[tokio::test]
async fn every_server_answers_under_its_own_names_only() {
    let (world, client, folder) = (World::new().await, Client::new(), scratch_folder());
    let (urls, running) = servers(&world, &folder, "rides.example.com,b.example").await;
    assert_eq!(urls.len(), 8);
    for url in &urls {
        for host in ["127.0.0.1", "localhost:5005", "[::1]", "10.1.2.3:80", "consumer0:5014", "Rides.example.com:443"] {
            assert_eq!(status(client.get(url).header("host", host)).await, 200, "{url} {host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:5005", "rides.example.com.evil.example"] {
            let response = client.get(url).header("host", host).send().await.unwrap();
            assert_eq!(response.status().as_u16(), 403, "{url} {host}");
            let body: Value = response.json().await.unwrap();
            assert_eq!(body["code"], "host_unknown", "{url} {host}");
        }
    }
    let (api, evil) = (urls[1].replace("/healthz", "/rides"), ("host", "evil.example"));
    let form = client.post(api).header("content-type", "application/x-www-form-urlencoded").body("distance=1");
    assert_eq!(status(form.header(evil.0, evil.1)).await, 403);
    assert_eq!(world.number("SELECT count(*) FROM rides").await, 0);
    drop(running);
    std::fs::remove_dir_all(folder).unwrap();
}

/// A browser sends a form for every page, also to servers that the page may not read. It says which page that is.
#[tokio::test]
async fn a_page_of_another_site_changes_nothing_on_any_server() {
    let (world, client, folder) = (World::new().await, Client::new(), scratch_folder());
    let (urls, running) = servers(&world, &folder, "").await;
    let wallet = "2CPQ9ep8gV4n9Ku1ZbNNLm4MrtX";
    let api = urls[1].replace("/healthz", "");
    let changes = ["/rides".to_owned(), "/wallets".to_owned(), format!("/wallet/{wallet}/credit")];
    let page = [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")];
    for url in urls.iter().cloned().chain(changes.iter().map(|path| format!("{api}{path}"))) {
        let form = || {
            let form = client.post(&url).header("content-type", "application/x-www-form-urlencoded");
            form.body(if url.contains("/wallet") { r#"{"amount":5}"# } else { "distance=1" })
        };
        for headers in [&page[..], &page[..1], &page[1..]] {
            let request = headers.iter().fold(form(), |form, (name, value)| form.header(*name, *value));
            let response = request.send().await.unwrap();
            assert_eq!(response.status().as_u16(), 403, "{url} {headers:?}");
            let body: Value = response.json().await.unwrap();
            assert_eq!(body["code"], "origin_unknown", "{url} {headers:?}");
        }
        let own = form().header("origin", &api).header("sec-fetch-site", "same-origin");
        assert_ne!(status(own).await, 403, "{url}: a page of its own");
    }
    let count = async |table| world.number(&format!("SELECT count(*) FROM {table}")).await;
    assert_eq!(
        (count("rides").await, count("wallet_events").await),
        (1, 1),
        "only the pages of the server itself wrote"
    );
    drop(running);
    std::fs::remove_dir_all(folder).unwrap();
}

/// `payments` takes orders as a monitor does: not from a page of another site, under whichever name.
#[tokio::test]
async fn no_page_of_another_site_orders_a_fault() {
    let (world, client, folder) = (World::new().await, Client::new(), scratch_folder());
    let (urls, running) = servers(&world, &folder, "*").await;
    assert_eq!(status(client.get(&urls[0]).header("host", "any.example")).await, 200);
    for path in ["/_faults", "/_forget-keys"] {
        let url = urls[5].replace("/healthz", path);
        let order = || {
            let order = client.post(&url).header("content-type", "application/x-www-form-urlencoded");
            order.body("kind=error-before")
        };
        assert_eq!(status(order()).await, 403, "as a form of another site would send it");
        let order = || order().header("x-fault-order", "1");
        assert_eq!(
            status(order().header("host", "evil.example")).await,
            403,
            "under a name that was made to point here"
        );
        assert_eq!(status(order()).await, 200);
    }
    drop(running);
    std::fs::remove_dir_all(folder).unwrap();
}

async fn start_api(world: &World, payments: &Payments, flags: &[&str]) -> (Process, String) {
    let mut api = Process::start(world, "api", &[&["--api-port", "0"], &payments.flags()[..], flags].concat());
    let url = format!("http://{}/rides", api.address_after("api started").await);
    (api, url)
}

fn form(url: &str, body: &str) -> RequestBuilder {
    let request = Client::new().post(url).header("content-type", "application/x-www-form-urlencoded");
    request.body(body.to_owned())
}

#[tokio::test]
async fn the_address_of_a_client_is_believed_of_a_trusted_proxy_only() {
    let (world, payments) = (World::new().await, Payments::start().await);
    let proxies = ["--trusted-proxies", "127.0.0.0/8,10.0.0.0/8"];
    let spoofed = [("x-forwarded-for", "6.6.6.6, 192.0.2.7, 10.0.0.9")];
    let forwarded = [("forwarded", "for=6.6.6.6, for=\"[2001:db8::7]:4711\", for=10.0.0.9")];
    for (index, (flags, headers, expected)) in [
        (&[][..], &spoofed[..], "127.0.0.1"),
        (&proxies, &spoofed, "192.0.2.7"),
        (&proxies, &forwarded, "2001:db8::7"),
        (&proxies, &[], "127.0.0.1"),
    ]
    .into_iter()
    .enumerate()
    {
        let (api, url) = start_api(&world, &payments, flags).await;
        let mut request =
            form(&url, JOURNEY).header("authorization", USER).header("idempotency-key", format!("{KEY}{index}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        assert_eq!(status(request).await, 201);
        let query = "SELECT host(origin_ip) FROM audit_records WHERE action = 'ride.created' ORDER BY id DESC LIMIT 1";
        let origin_ip: String = world.client().query_one(query, &[]).await.unwrap().get(0);
        assert_eq!(origin_ip, expected, "{flags:?} {headers:?}");
        api.stop().await;
    }
}

/// A proxy asks for a password of its own, and passes it on.
#[tokio::test]
async fn the_authorization_of_a_proxy_makes_no_booking_of_a_guests_ride() {
    let (world, payments) = (World::new().await, Payments::start().await);
    let (_api, url) = start_api(&world, &payments, &[]).await;
    for authorization in ["Basic dXNlcjpzZWNyZXQ=", "Bearer token", USER, ""] {
        assert_eq!(status(form(&url, "distance=1.5").header("authorization", authorization)).await, 201);
    }
    assert_eq!(world.number("SELECT count(*) FROM rides WHERE distance_mm = 1500").await, 4);
    assert_eq!(world.number("SELECT count(*) FROM bookings").await, 0);
}

#[tokio::test]
async fn a_booking_without_a_known_user_is_told_what_is_wanted() {
    let (world, payments) = (World::new().await, Payments::start().await);
    let (_api, url) = start_api(&world, &payments, &[]).await;
    for request in [form(&url, JOURNEY), form(&url, JOURNEY).header("authorization", "Basic dXNlcjpzZWNyZXQ=")] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), 401);
        assert_eq!(response.headers()["www-authenticate"], r#"Email realm="rides""#);
    }
    let response = Client::new().post(format!("{}/v1/charges", payments.base())).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 401);
    assert_eq!(response.headers()["www-authenticate"], r#"Bearer realm="payments""#);
}

fn json(url: &str, body: &[u8]) -> RequestBuilder {
    Client::new().post(url).header("content-type", "application/json").body(body.to_vec())
}

#[tokio::test]
async fn a_byte_order_mark_is_passed_over() {
    let (world, payments) = (World::new().await, Payments::start().await);
    let (_api, url) = start_api(&world, &payments, &[]).await;
    assert_eq!(status(json(&url, b"\xef\xbb\xbf{\"distance\":1.5}")).await, 201);
    assert_eq!(status(form(&url, "\u{feff}distance=1.5")).await, 201);
    assert_eq!(status(json(&url, b"\xef\xbb\xbf\xef\xbb\xbf{\"distance\":1.5}")).await, 400, "one mark is enough");
}

#[tokio::test]
async fn a_compressed_body_is_refused_with_what_is_wanted() {
    let (world, payments) = (World::new().await, Payments::start().await);
    let (_api, url) = start_api(&world, &payments, &[]).await;
    for encoding in ["gzip", "br", "deflate, gzip"] {
        let response = json(&url, b"\x1f\x8b\x08").header("content-encoding", encoding).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 415, "{encoding}");
        assert_eq!(response.headers()["accept-encoding"], "identity");
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["code"], "content_encoding_unsupported");
    }
    let charge = form(&format!("{}/v1/charges", payments.base()), "").header("authorization", "Bearer sk_test_any");
    assert_eq!(status(charge.header("content-encoding", "gzip")).await, 415);
    assert_eq!(status(json(&url, b"{\"distance\":1.5}").header("content-encoding", "identity")).await, 201);
}

#[tokio::test]
async fn names_and_proxies_that_are_none_are_refused_with_what_is_wanted() {
    for (name, value, line) in [
        ("HTTP_HOSTS", "https://a.example", "bad HTTP_HOSTS \"https://a.example\": https://a.example is no host name"),
        ("TRUSTED_PROXIES", "proxy", "bad TRUSTED_PROXIES \"proxy\": proxy is no address: give addresses or networks"),
    ] {
        let mut command = Command::new(binary("api"));
        command.env_clear().env("DATABASE_URL", "postgres://localhost/x").env(name, value);
        let output = Process::spawn("api", command).fail(2).await;
        assert!(output.starts_with(line), "{output}");
    }
}
