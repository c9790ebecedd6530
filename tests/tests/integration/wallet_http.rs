//! Wallets over HTTP: the shapes and texts of UN-05 to UN-08, and every class of bad input.

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tests::{Process, Watched, World};
use wallet::WalletId;

use crate::manners::start_api;

const JSON: &str = "application/json";

/// An api, and a client of its wallets.
pub struct Teller {
    _api: Process,
    base: String,
    client: Client,
}

impl Teller {
    pub async fn start(world: &World, flags: &[&str]) -> Self {
        let (api, base) = start_api(world, flags).await;
        Self { _api: api, base, client: Client::new() }
    }

    pub fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    pub async fn get(&self, path: &str) -> (u16, HeaderMap, Value) {
        parts(self.ask(Method::GET, path).send().await.unwrap()).await
    }

    pub async fn post(&self, path: &str, body: &str, headers: &[(&str, &[u8])]) -> (u16, HeaderMap, Value) {
        let mut request = self.ask(Method::POST, path).body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
        }
        parts(request.send().await.unwrap()).await
    }

    pub async fn command(&self, wallet: &WalletId, action: &str, body: &Value) -> (u16, Value) {
        let (status, _, answer) = self.post(&format!("/wallet/{wallet}/{action}"), &body.to_string(), &[]).await;
        (status, answer)
    }
}

async fn parts(response: Response) -> (u16, HeaderMap, Value) {
    let (status, headers, url) = (response.status().as_u16(), response.headers().clone(), response.url().clone());
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{url}: {status} {error}: {text}"));
    (status, headers, body)
}

/// Asserts the shape of an error, and that the text begins in this way.
fn assert_error(answer: &Value, (method, url): (&str, &str), (code, start): (&str, &str)) {
    let fields: Vec<&str> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["code", "detail", "error", "method", "success", "url"], "{answer}");
    let is = (&answer["success"], &answer["detail"], &answer["method"], &answer["url"], &answer["code"]);
    let wanted = (&json!(false), &json!("An error occurred"), &json!(method), &json!(url), &json!(code));
    assert_eq!(is, wanted, "{answer}");
    assert!(answer["error"].as_str().unwrap().starts_with(start), "{answer} should begin with {start}");
}

#[tokio::test]
async fn a_wallet_answers_in_the_shapes_of_the_seed() {
    let world = World::new().await;
    let teller = Teller::start(&world, &[]).await;
    let (status, headers, new) = teller.post("/wallets", "", &[]).await;
    let id = new["id"].as_str().unwrap().to_owned();
    assert_eq!((status, headers["location"].to_str().unwrap()), (201, &*format!("/wallet/{id}")));
    assert!(id.parse::<WalletId>().is_ok());

    let text = async |path: String, body: Option<&str>| {
        let request = match body {
            None => teller.ask(Method::GET, &path),
            // As curl sends it.
            Some(_) => teller.ask(Method::POST, &path).header("content-type", "application/x-www-form-urlencoded"),
        };
        let response = request.body(body.unwrap_or_default().to_owned()).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], JSON);
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let (status, debit) = text(format!("/wallet/{id}/debit"), Some(r#"{"amount": 5}"#)).await;
    let overdrawn =
        r#"failed to handle endpoint=\"debit\": debit of 5 rejected; would cause balance of -5 (overdrawn)"#;
    let wanted = format!(
        "{{\n    \"success\": false,\n    \"detail\": \"An error occurred\",\n    \"method\": \"POST\",\n    \
         \"url\": \"/wallet/{id}/debit\",\n    \"error\": \"{overdrawn}\",\n    \"code\": \"rejected\"\n}}"
    );
    assert_eq!((status, debit), (400, wanted));

    let (status, credit) = text(format!("/wallet/{id}/credit"), Some(r#"{"amount": 5}"#)).await;
    let event_id = serde_json::from_str::<Value>(&credit).unwrap()["event_id"].as_str().unwrap().to_owned();
    let wanted = format!(
        "{{\n    \"success\": true,\n    \"detail\": \"handled endpoint=\\\"credit\\\"\",\n    \"version\": 1,\n    \
         \"balance\": 5.00,\n    \"event_id\": \"{event_id}\"\n}}"
    );
    assert_eq!((status, credit), (200, wanted));

    let (status, balance) = text(format!("/wallet/{id}/balance"), None).await;
    let timestamp = serde_json::from_str::<Value>(&balance).unwrap()["timestamp"].as_str().unwrap().to_owned();
    let (time, state) = (format!("\"timestamp\": \"{timestamp}\""), "\"balance\": 5.00,\n    \"version\": 1\n}");
    assert_eq!((status, balance), (200, format!("{{\n    {time},\n    {state}")));
    let (status, shown) = text(format!("/wallet/{id}"), None).await;
    assert_eq!((status, shown), (200, format!("{{\n    {time},\n    \"id\": \"{id}\",\n    {state}")));
    let (status, transactions) = text(format!("/wallet/{id}/transactions"), None).await;
    let wanted = format!(
        "{{\n    {time},\n    \"transactions\": [\n        {{\n            {time},\n            \
         \"source_entity_id\": \"world\",\n            \"amount\": 5.00,\n            \"version\": 1,\n            \
         \"event_id\": \"{event_id}\"\n        }}\n    ],\n    \"next_before\": null\n}}"
    );
    assert_eq!((status, transactions), (200, wanted));
    assert_eq!(text(format!("/wallet/{id}/debit"), Some(r#"{"amount":5.00}"#)).await.0, 200, "0 is allowed");
}

#[tokio::test]
async fn a_transfer_is_seen_from_both_wallets() {
    let world = World::new().await;
    let teller = Teller::start(&world, &[]).await;
    let (payer, receiver) = (WalletId::new(), WalletId::new());
    assert_eq!(teller.command(&payer, "credit", &json!({"amount": 7.5})).await.0, 200);
    let body = json!({"to": receiver.as_str(), "amount": 2.25});
    let (status, answer) = teller.command(&payer, "transfer", &body).await;
    assert_eq!((status, &answer["balance"], &answer["version"]), (200, &json!(5.25), &json!(2)), "{answer}");
    for (wallet, other, amount, version) in [(payer, receiver, -2.25, 2), (receiver, payer, 2.25, 1)] {
        let (_, _, page) = teller.get(&format!("/wallet/{wallet}/transactions?min_version={version}")).await;
        let newest = &page["transactions"][0];
        assert_eq!((&newest["amount"], &newest["version"]), (&json!(amount), &json!(version)), "{page}");
        assert_eq!(newest["source_entity_id"], other.as_str());
    }
    let (status, answer) = teller.command(&payer, "transfer", &json!({"to": receiver.as_str(), "amount": 6})).await;
    let text =
        "failed to handle endpoint=\"transfer\": transfer of 6 rejected; would cause balance of -0.75 (overdrawn)";
    assert_eq!((status, &answer["error"]), (400, &json!(text)));
}

/// How the error of a body begins that is no JSON.
const NO_JSON: &str =
    "failed to parse JSON from request body: expected value at line 1 column 1; send an object such as {\"amount\": 5}";

#[tokio::test]
async fn bad_input_is_refused_in_the_shape_of_the_seed_and_writes_nothing() {
    let world = World::new().await;
    let teller = Teller::start(&world, &[]).await;
    let id = WalletId::new();
    let (large, body) = (format!("{{\"amount\":5{}}}", " ".repeat(20_000)), r#"{"amount":5}"#);
    let handle = "failed to handle endpoint=\"credit\": ";
    let text = |start: &str| format!("{handle}{start}");
    for (body, status, code, start) in [
        ("", 400, "body_malformed", "failed to parse JSON from request body: EOF".to_owned()),
        ("{\"amount\":5", 400, "body_malformed", "failed to parse JSON from request body: EOF".to_owned()),
        ("amount=5", 400, "body_malformed", NO_JSON.to_owned()),
        (&large, 413, "body_too_large", "failed to read data from request body: The body is too large".to_owned()),
        ("[5]", 400, "command_malformed", text("failed to cast requestBody=[5] to Amount: ")),
        ("{}", 400, "command_malformed", text("failed to cast requestBody={} to Amount: missing field")),
        (r#"{"amount":5,"x":1}"#, 400, "command_malformed", text("failed to cast requestBody=")),
        (r#"{"amount":5,"amount":5}"#, 400, "command_malformed", text("failed to cast requestBody=")),
        (r#"{"amount":"5"}"#, 400, "amount_not_a_number", text("failed to cast rawAmount=\"5\" to float64: ")),
        (r#"{"amount":null}"#, 400, "amount_not_a_number", text("failed to cast rawAmount=null to float64: ")),
        (r#"{"amount":true}"#, 400, "amount_not_a_number", text("failed to cast rawAmount=true to float64: ")),
        (r#"{"amount":0}"#, 400, "amount_out_of_range", text("credit amount must be greater than 0")),
        (r#"{"amount":-5}"#, 400, "amount_out_of_range", text("credit amount must be greater than 0")),
        (r#"{"amount":1e400}"#, 400, "amount_out_of_range", text("credit amount is too large: ")),
        (r#"{"amount":1000000000.01}"#, 400, "amount_out_of_range", text("credit amount is too large: ")),
        (r#"{"amount":1.005}"#, 400, "amount_too_fine", text("credit amount has more than two decimal places: ")),
    ] {
        let url = format!("/wallet/{id}/credit");
        let (is, _, answer) = teller.post(&url, body, &[("content-type", JSON.as_bytes())]).await;
        assert_eq!(is, status, "{body}: {answer}");
        assert_error(&answer, ("POST", &url), (code, &start));
    }
    let bad_key = |value: &'static [u8]| ("idempotency-key", value);
    let long: &'static [u8] = "k".repeat(256).leak().as_bytes();
    for (headers, status, code) in [
        (vec![("content-type", &b"text/plain"[..])], 415, "content_type_unsupported"),
        (vec![("content-encoding", &b"gzip"[..])], 415, "content_encoding_unsupported"),
        (vec![bad_key(b"")], 400, "idempotency_key_empty"),
        (vec![bad_key(long)], 400, "idempotency_key_too_long"),
        (vec![bad_key(b"\"a")], 400, "idempotency_key_malformed"),
        (vec![bad_key(b"\xff")], 400, "idempotency_key_malformed"),
        (vec![bad_key(b"a"), bad_key(b"a")], 400, "idempotency_key_malformed"),
    ] {
        let url = format!("/wallet/{id}/credit");
        let (is, _, answer) = teller.post(&url, body, &headers).await;
        assert_eq!(is, status, "{headers:?}: {answer}");
        assert_error(&answer, ("POST", &url), (code, ""));
    }
    let (_, _, answer) = teller.post(&format!("/wallet/{id}/credit"), body, &[bad_key(b"")]).await;
    assert_eq!(answer["error"], "Idempotency-Key is empty: give it a value, or leave the header out.");
    for (to, code) in [(id.as_str(), "transfer_to_itself"), ("world", "ksuid_malformed"), ("", "ksuid_malformed")] {
        let (status, answer) = teller.command(&id, "transfer", &json!({"to": to, "amount": 5})).await;
        assert_eq!(status, 400, "{to}");
        let url = format!("/wallet/{id}/transfer");
        assert_error(&answer, ("POST", &url), (code, "failed to handle endpoint=\"transfer\": "));
    }
    assert_targets(&teller, &id).await;
    for table in ["wallet_events", "wallet_locks", "staged_log_records"] {
        assert_eq!(world.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    // A well-formed attempt is an event, and a record of the log, even if it is rejected (W1).
    assert_eq!(teller.command(&id, "debit", &json!({"amount": 5})).await.0, 400);
    let query = "SELECT count(*) FROM wallet_events WHERE NOT accepted AND version = 0 AND reason IS NOT NULL";
    assert_eq!((world.number(query).await, world.number("SELECT count(*) FROM wallet_events").await), (1, 1));
    let query = "SELECT count(*) FROM staged_log_records WHERE (object, action) = ('wallet', 'reject')";
    assert_eq!(world.number(query).await, 1);
}

/// Bad paths, methods and parameters.
async fn assert_targets(teller: &Teller, id: &WalletId) {
    let no_path = "path must be 'wallet/[entity ksuid]/[endpoint]'";
    let no_ksuid = "entity ksuid \"x\" could not be parsed: a KSUID has 27 characters";
    let no_version = "Parameter 'min_version' must be a whole number from 0 on.";
    let no_parameter = "there is no parameter \"minversion\": this path takes min_version";
    let no_parameter_at_all = "there is no parameter \"dry_run\": this path takes none";
    let no_page_parameter = "there is no parameter \"after\": this path takes before, limit, min_version";
    for (method, path, status, code, start) in [
        ("GET", "/wallet".to_owned(), 400, "path_malformed", no_path),
        ("POST", format!("/wallet/{id}/credit/now"), 400, "path_malformed", no_path),
        ("GET", "/wallet/x".to_owned(), 400, "ksuid_malformed", no_ksuid),
        ("GET", "/wallet/x/balance".to_owned(), 400, "ksuid_malformed", no_ksuid),
        ("GET", "/wallet/x/transactions".to_owned(), 400, "ksuid_malformed", no_ksuid),
        ("POST", "/wallet/x/credit".to_owned(), 400, "ksuid_malformed", no_ksuid),
        ("POST", "/wallet/x/close".to_owned(), 400, "ksuid_malformed", no_ksuid),
        ("GET", format!("/wallet/{id}%00/balance"), 400, "ksuid_malformed", "entity ksuid"),
        ("GET", "/wallet/zzzzzzzzzzzzzzzzzzzzzzzzzzz".to_owned(), 400, "ksuid_malformed", "entity ksuid"),
        ("POST", format!("/wallet/{id}/close"), 400, "endpoint_unknown", "no handler for endpoint=\"close\": "),
        ("GET", format!("/wallet/{id}/"), 400, "endpoint_unknown", "no handler for endpoint=\"\": "),
        ("DELETE", format!("/wallet/{id}"), 405, "method_not_allowed", "method must be GET or POST: "),
        ("PUT", format!("/wallet/{id}/credit"), 405, "method_not_allowed", "method must be GET or POST: "),
        ("GET", format!("/wallet/{id}/credit"), 405, "method_not_allowed", "method must be GET or POST: "),
        ("POST", format!("/wallet/{id}/balance"), 405, "method_not_allowed", "method must be GET or POST: "),
        ("PATCH", format!("/wallet/{id}/close"), 405, "method_not_allowed", "method must be GET or POST: "),
        ("GET", "/wallets".to_owned(), 405, "method_not_allowed", "method must be GET or POST: "),
        ("GET", format!("/wallet/{id}?min_version=x"), 400, "parameter_invalid", no_version),
        ("GET", format!("/wallet/{id}?minversion=7"), 400, "parameter_unknown", no_parameter),
        (
            "GET",
            format!("/wallet/{id}/balance?min_version=1&limit=5"),
            400,
            "parameter_unknown",
            "there is no parameter",
        ),
        ("GET", format!("/wallet/{id}/transactions?after=5"), 400, "parameter_unknown", no_page_parameter),
        ("GET", format!("/wallet/{id}/balance?min_version=-1"), 400, "parameter_invalid", "Parameter 'min_version'"),
        (
            "GET",
            format!("/wallet/{id}/balance?min_version=1&min_version=1"),
            400,
            "parameter_invalid",
            "a parameter is",
        ),
        ("POST", format!("/wallet/{id}/credit?dry_run=true"), 400, "parameter_unknown", no_parameter_at_all),
        ("POST", format!("/wallet/{id}/debit?min_version=1"), 400, "parameter_unknown", "there is no parameter"),
        ("POST", format!("/wallet/{id}/transfer?&x"), 400, "parameter_unknown", "there is no parameter \"x\""),
        ("POST", "/wallets?dry_run=true".to_owned(), 400, "parameter_unknown", no_parameter_at_all),
        ("GET", format!("/wallet/{id}/transactions?limit=0"), 400, "parameter_invalid", "Parameter 'limit' must be"),
        ("GET", format!("/wallet/{id}/transactions?limit=1001"), 400, "parameter_invalid", "Parameter 'limit'"),
        ("GET", format!("/wallet/{id}/transactions?before=0"), 400, "parameter_invalid", "Parameter 'before'"),
    ] {
        let request = teller.ask(method.parse().unwrap(), &path).body(r#"{"amount":5}"#);
        let (is, headers, answer) = parts(request.send().await.unwrap()).await;
        assert_eq!((is, headers.contains_key("allow")), (status, status == 405), "{method} {path}: {answer}");
        assert_error(&answer, (method, &path), (code, start));
    }
}

#[tokio::test]
async fn a_repeated_key_gets_the_same_answer_and_writes_nothing() {
    let world = World::new().await;
    let teller = Teller::start(&world, &[]).await;
    let (id, other) = (WalletId::new(), WalletId::new());
    let send = async |wallet: &WalletId, action: &str, amount: &str, key: &'static [u8]| {
        let (path, body) = (format!("/wallet/{wallet}/{action}"), format!("{{\"amount\":{amount}}}"));
        let (status, headers, answer) = teller.post(&path, &body, &[("idempotency-key", key)]).await;
        let replayed = headers.get("idempotent-replayed").map(|value| value.to_str().unwrap().to_owned());
        (status, replayed, answer)
    };
    let (rejected, none, no_money) = send(&id, "debit", "5", b"d").await;
    assert_eq!((rejected, none), (400, None));
    let (status, none, credited) = send(&id, "credit", "5", b"c").await;
    assert_eq!((status, none), (200, None));
    // Another spelling of the same amount, and of the same key.
    let replayed = Some("true".to_owned());
    assert_eq!(send(&id, "credit", "5.00", b"\"c\"").await, (200, replayed.clone(), credited));
    // The wallet has enough by now: the answer is still that of the first attempt.
    assert_eq!(send(&id, "debit", "5", b"d").await, (400, replayed, no_money));
    for (action, amount) in [("credit", "6"), ("debit", "5")] {
        let (status, replayed, answer) = send(&id, action, amount, b"c").await;
        assert_eq!((status, replayed), (409, None), "{action} {amount}");
        assert_eq!(answer["code"], "idempotency_key_mismatch");
    }
    assert_eq!(send(&other, "credit", "6", b"c").await.0, 200, "a key belongs to a wallet");
    assert_eq!(world.number("SELECT count(*) FROM wallet_events").await, 3);
}

#[tokio::test]
async fn head_cors_compression_and_metrics_are_those_of_every_route() {
    let world = World::new().await;
    let mut api = Watched::start(&world, "api", &["--api-port", "0", "--api-cors-origins", "https://a.example"]).await;
    let address = api.process.address_after("api started").await;
    let client = Client::new();
    let id = WalletId::new();
    let url = |path: &str| format!("http://{address}/wallet/{id}/{path}");
    let whole = client.get(url("balance")).header("origin", "https://a.example").send().await.unwrap();
    assert_eq!(whole.headers()["access-control-allow-origin"], "https://a.example");
    let exposed = whole.headers()["access-control-expose-headers"].to_str().unwrap();
    assert!(exposed.contains("read-from") && exposed.contains("idempotent-replayed"), "{exposed}");
    assert!(whole.headers().contains_key("x-request-id"));
    assert_eq!(whole.headers()["read-from"], "postgres", "there is no projector yet");
    let head = client.head(url("balance")).send().await.unwrap();
    assert_eq!((head.status().as_u16(), &head.headers()["content-length"]), (200, &whole.headers()["content-length"]));
    assert_eq!(head.text().await.unwrap(), "");
    for n in 1..=30 {
        let credited = client.post(url("credit")).json(&json!({"amount": n})).send().await.unwrap();
        assert_eq!(credited.status().as_u16(), 200);
    }
    let page = client.get(url("transactions")).header("accept-encoding", "gzip").send().await.unwrap();
    assert_eq!(page.headers()["content-encoding"], "gzip");
    let metrics = api.metrics().await;
    let route = |method: &str, route: &str| {
        let name = format!(
            "rocket_rides_http_requests_total{{method=\"{method}\",route=\"/wallet/{{id}}/{route}\",status=\"200\"}}"
        );
        *metrics.get(&name).unwrap_or_else(|| panic!("{name} of {:?}", metrics.keys()))
    };
    assert_eq!((route("POST", "credit"), route("GET", "balance"), route("HEAD", "balance")), (30.0, 1.0, 1.0));
    assert_eq!(metrics["rocket_rides_wallet_reads_total{source=\"postgres\"}"], 3.0);
    assert_eq!(metrics["rocket_rides_wallet_commands_total{result=\"accepted\"}"], 30.0);
    api.process.stop().await;
}
