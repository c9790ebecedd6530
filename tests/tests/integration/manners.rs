//! The headers of every response of the api: the request id, the headers that browsers need, and compression.

use std::io::Read;

use flate2::read::GzDecoder;
use reqwest::{Client, Method, Response};
use serde_json::Value;
use tests::{Process, World};

const FORM: &str = "application/x-www-form-urlencoded";
const RIDE: &str = "distance=5";

/// Starts an api as a process. Returns the process and the base of its URLs.
pub async fn start_api(world: &World, flags: &[&str]) -> (Process, String) {
    let mut process = Process::start(world, "api", &[&["--api-port", "0"], flags].concat());
    process.wait_for("api started").await;
    let output = process.output();
    let address = output.split("address=").nth(1).unwrap().split_whitespace().next().unwrap();
    (process, format!("http://{address}"))
}

async fn ask(method: Method, url: &str, headers: &[(&str, &str)], body: &'static str) -> Response {
    let mut request = Client::new().request(method, url).header("content-type", FORM).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn every_answer_bears_the_clients_request_id_or_a_new_one() {
    let world = World::new().await;
    let (_api, base) = start_api(&world, &[]).await;
    let mut made = std::collections::HashSet::new();
    let all = [
        (Method::POST, "/rides", RIDE, 201),
        (Method::POST, "/rides", "distance=x", 422),
        (Method::POST, "/rides", "origin_lat=1", 503),
        (Method::GET, "/rides", "", 200),
        (Method::GET, "/rides/99", "", 404),
        (Method::GET, "/nothing", "", 404),
        (Method::OPTIONS, "/rides", "", 405),
        (Method::GET, "/openapi.json", "", 200),
    ];
    for (method, path, body, status) in all {
        let url = format!("{base}{path}");
        let answer = ask(method.clone(), &url, &[("x-request-id", "client-1/a")], body).await;
        assert_eq!((answer.status().as_u16(), header(&answer, "x-request-id")), (status, Some("client-1/a")), "{path}");
        for insane in [&[][..], &[("x-request-id", "a b")], &[("x-request-id", "")]] {
            let answer = ask(method.clone(), &url, insane, body).await;
            let id = header(&answer, "x-request-id").unwrap().to_owned();
            assert!(id.len() == 16 && made.insert(id.clone()), "{method} {path}: {id}");
        }
    }
}

#[tokio::test]
async fn what_goes_wrong_is_logged_with_the_request_id() {
    let world = World::new().await;
    world.client().batch_execute("ALTER TABLE rides RENAME TO gone").await.unwrap();
    // An api each, because the log names the first request only of those that fail in the same way.
    for (method, body, id, words) in [
        (Method::GET, "", "of-a-read", "postgres refuses a statement"),
        (Method::POST, RIDE, "of-a-ride", "a request failed"),
    ] {
        let (mut api, base) = start_api(&world, &[]).await;
        let answer = ask(method, &format!("{base}/rides"), &[("x-request-id", id)], body).await;
        assert_eq!(answer.status(), 500);
        api.wait_for(id).await;
        let output = api.output();
        assert!(output.lines().any(|line| line.contains(words) && line.contains(id)), "{output}");
    }
}

#[tokio::test]
async fn pages_of_other_origins_are_helped_only_if_they_are_listed() {
    let world = World::new().await;
    let origins = "https://a.example,http://localhost:8080";
    let (_open, any) = start_api(&world, &["--cors-origins", "*"]).await;
    let (_listing, listed) = start_api(&world, &["--cors-origins", origins]).await;
    let (_closed, none) = start_api(&world, &[]).await;
    let asks = ("access-control-request-method", "POST");
    for (base, origin, allowed) in [
        (&any, "https://b.example", Some("*")),
        (&listed, "https://a.example", Some("https://a.example")),
        (&listed, "http://localhost:8080", Some("http://localhost:8080")),
        (&listed, "https://b.example", None),
        (&listed, "http://a.example", None),
        (&listed, "null", None),
        (&none, "https://a.example", None),
    ] {
        let (url, origin) = (format!("{base}/rides"), ("origin", origin));
        let preflight = ask(Method::OPTIONS, &url, &[origin, asks], "").await;
        assert_eq!(header(&preflight, "access-control-allow-origin"), allowed, "{origin:?}");
        assert_eq!(preflight.status(), if allowed.is_some() { 204 } else { 405 }, "{origin:?}");
        let headers = header(&preflight, "access-control-allow-headers").unwrap_or("");
        assert_eq!(headers.contains("idempotency-key"), allowed.is_some(), "{origin:?}");
        for (method, body) in [(Method::POST, RIDE), (Method::GET, ""), (Method::DELETE, "")] {
            let answer = ask(method.clone(), &url, &[origin], body).await;
            assert_eq!(header(&answer, "access-control-allow-origin"), allowed, "{method} {origin:?}");
            let exposed = header(&answer, "access-control-expose-headers").unwrap_or("");
            assert_eq!(exposed.contains("x-request-id"), allowed.is_some(), "{method} {origin:?}");
            let varies = answer.headers().get_all("vary").iter().any(|value| value == "origin");
            assert_eq!(varies, *base == listed, "{method} {origin:?}");
            assert!(answer.headers().get("access-control-allow-credentials").is_none());
        }
    }
}

#[tokio::test]
async fn larger_answers_are_compressed_for_those_who_want_it() {
    let world = World::new().await;
    world.write_rides(100).await;
    let (_api, base) = start_api(&world, &[]).await;
    let gzip = ("accept-encoding", "gzip, br");
    for path in ["/rides", "/openapi.json", "/docs/swagger-ui.css"] {
        let url = format!("{base}{path}");
        let plain = ask(Method::GET, &url, &[], "").await;
        assert_eq!(
            (header(&plain, "content-encoding"), header(&plain, "vary")),
            (None, Some("accept-encoding")),
            "{path}"
        );
        let plain = plain.bytes().await.unwrap();
        let answer = ask(Method::GET, &url, &[gzip], "").await;
        assert_eq!(header(&answer, "content-encoding"), Some("gzip"), "{path}");
        assert_eq!(header(&answer, "vary"), Some("accept-encoding"), "{path}");
        let compressed = answer.bytes().await.unwrap();
        assert!(compressed.len() < plain.len() / 2, "{path}: {} of {}", compressed.len(), plain.len());
        let mut whole = Vec::new();
        GzDecoder::new(&compressed[..]).read_to_end(&mut whole).unwrap();
        assert!(whole == plain, "{path}");
    }
    for (method, path, body) in
        [(Method::POST, "/rides", RIDE), (Method::GET, "/rides/1", ""), (Method::GET, "/totals", "")]
    {
        let answer = ask(method, &format!("{base}{path}"), &[gzip], body).await;
        assert!(answer.status().is_success(), "{path}");
        assert_eq!(header(&answer, "content-encoding"), None, "{path}");
        answer.json::<Value>().await.unwrap();
    }
}
