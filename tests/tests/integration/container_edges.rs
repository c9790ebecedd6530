//! The edges of the container: bodies that are odd, too large, too slow or broken; destinations that ask to be left alone, come,
//! go and move while units wait.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::routing::post;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{free_port, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::container_fixture::{Scene, config, manifest};

const JSON: &str = "application/json";
const PARTS: &str = "multipart/form-data; boundary=b";

/// Sends a body. Returns the status and the code of the error, or the state of the unit.
async fn send(scene: &Scene, content_type: &str, body: impl Into<Vec<u8>>) -> (u16, String) {
    let request = scene.client.post(scene.url("/manifests")).header("content-type", content_type).body(body.into());
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    let word = body.get("code").or(body.get("state")).unwrap_or(&Value::Null);
    (status, word.as_str().unwrap_or_default().to_owned())
}

/// A part of a multipart body.
fn part(name: &str, content_type: &str, content: &str) -> String {
    format!(
        "--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\ncontent-type: {content_type}\r\n\r\n{content}\r\n"
    )
}

/// No part of a refused body is left anywhere.
async fn assert_nothing_is_left(scene: &Scene) {
    assert_eq!(scene.world.number("SELECT count(*) FROM units").await, 0);
    assert_eq!((scene.spooled(), scene.photos().len()), (0, 0));
    assert!(scene.world.number("SELECT count(*) FROM manifests").await == 0 && scene.on_board(7).await.is_none());
}

#[tokio::test]
async fn a_body_that_cannot_be_stored_is_refused_and_nothing_is_left() {
    let scene = Scene::start().await;
    let document = r#"{"ride_id":7,"passengers":["Ada"]}"#;
    let sound = part("manifest", JSON, document);
    let photo = part("photo", "image/png", "pixels");
    let deep =
        |depth: usize| format!(r#"{{"ride_id":7,"passengers":[],"a":{}1{}}}"#, "[".repeat(depth), "]".repeat(depth));
    let long = format!(r#"{{"ride_id":7,"passengers":["{}"]}}"#, "x".repeat(64 * 1024));
    let malformed = (400, "document_malformed");
    let cases: Vec<(&str, String, (u16, &str))> = vec![
        (JSON, String::new(), malformed),
        (JSON, "nothing".to_owned(), malformed),
        (JSON, "[]".to_owned(), malformed),
        (JSON, document[..20].to_owned(), malformed),
        // The subject.
        (JSON, r#"{"passengers":[]}"#.to_owned(), malformed),
        (JSON, r#"{"ride_id":7.5,"passengers":[]}"#.to_owned(), malformed),
        (JSON, r#"{"ride_id":true,"passengers":[]}"#.to_owned(), malformed),
        (JSON, r#"{"ride_id":null,"passengers":[]}"#.to_owned(), malformed),
        (JSON, r#"{"ride_id":[7],"passengers":[]}"#.to_owned(), malformed),
        (JSON, r#"{"ride_id":"","passengers":[]}"#.to_owned(), malformed),
        (JSON, r#"{"ride_id":"a\nb","passengers":[]}"#.to_owned(), malformed),
        (JSON, r#"{"ride_id":9223372036854775808,"passengers":[]}"#.to_owned(), malformed),
        (JSON, json!({ "ride_id": "é".repeat(201), "passengers": [] }).to_string(), malformed),
        // Postgres cannot hold it, or destinations would read it in different ways.
        (JSON, r#"{"ride_id":7,"passengers":["\u0000"]}"#.to_owned(), malformed),
        (JSON, r#"{"ride_id":7,"passengers":[],"\u0000":1}"#.to_owned(), malformed),
        (JSON, r#"{"ride_id":7,"ride_id":8,"passengers":[]}"#.to_owned(), malformed),
        (JSON, r#"{"ride_id":7,"passengers":[{"a":1,"a":2}]}"#.to_owned(), malformed),
        (JSON, r#"{"ride_id":7,"passengers":["\ud800"]}"#.to_owned(), malformed),
        (JSON, deep(200), malformed),
        (JSON, long.clone(), (413, "body_large")),
        // The parts.
        (PARTS, String::new(), (400, "body_broken")),
        (PARTS, "no part".to_owned(), (400, "body_broken")),
        (PARTS, sound.clone(), (400, "body_broken")),
        (PARTS, "--b--\r\n".to_owned(), (400, "document_missing")),
        (PARTS, format!("{photo}--b--\r\n"), (400, "document_missing")),
        (PARTS, format!("{sound}{sound}--b--\r\n"), (400, "part_twice")),
        (PARTS, format!("{sound}{photo}{photo}--b--\r\n"), (400, "part_twice")),
        (PARTS, format!("{sound}{}--b--\r\n", part("video", "image/png", "x")), (400, "part_unknown")),
        (PARTS, format!("{sound}{}--b--\r\n", part("photo", "text/html", "x")), (415, "content_type_unknown")),
        (PARTS, format!("{sound}{}--b--\r\n", part("photo", "image/png", "")), (400, "part_empty")),
        (PARTS, format!("{}{photo}--b--\r\n", part("manifest", JSON, "")), malformed),
        (PARTS, format!("{}--b--\r\n", part("manifest", JSON, &long)), (413, "body_large")),
        ("multipart/form-data", format!("{sound}--b--\r\n"), (415, "content_type_unknown")),
        ("text/plain", document.to_owned(), (415, "content_type_unknown")),
    ];
    for (content_type, body, (status, code)) in cases {
        let shown: String = body.chars().take(200).collect();
        assert_eq!(send(&scene, content_type, body).await, (status, code.to_owned()), "{content_type}: {shown}");
        assert_nothing_is_left(&scene).await;
    }
    // The file is found by its hidden name only while it is written.
    let two_keys = scene.post(&manifest(7, &["Ada"])).header("idempotency-key", "a").header("idempotency-key", "b");
    assert_eq!(two_keys.send().await.unwrap().status(), 400);
    assert_nothing_is_left(&scene).await;
}

#[tokio::test]
async fn a_body_at_the_edge_of_a_limit_is_stored_whole() {
    let scene = Scene::start().await;
    let subject = "é".repeat(200);
    assert_eq!(send(&scene, JSON, json!({ "ride_id": subject, "passengers": [] }).to_string()).await.0, 200);
    let found: Value = reqwest::get(scene.url(&format!("/manifests/{subject}"))).await.unwrap().json().await.unwrap();
    assert_eq!(found["ride_id"], subject.as_str());
    let odd =
        r#"{"ride_id":-9223372036854775808,"passengers":[],"big":1e308,"\\u0000":"\\u0000","deep":[[[[[[1]]]]]]}"#;
    assert_eq!(send(&scene, JSON, odd).await, (200, "committed".to_owned()));
    assert_eq!(scene.current(i64::MIN).await.unwrap()["\\u0000"], "\\u0000");
    let deep = format!(r#"{{"ride_id":9,"passengers":[],"a":{}1{}}}"#, "[".repeat(120), "]".repeat(120));
    assert_eq!(send(&scene, JSON, deep).await.0, 200);
    let (head, tail) = (r#"{"ride_id":8,"passengers":[""#, r#""]}"#);
    let longest = format!("{head}{}{tail}", "x".repeat(64 * 1024 - head.len() - tail.len()));
    assert_eq!(send(&scene, JSON, longest).await.0, 200);
    // A document that only one destination refuses: no destination keeps it.
    assert_eq!(send(&scene, JSON, r#"{"ride_id":10,"passengers":5}"#).await, (422, "rejected".to_owned()));
    assert_eq!((scene.current(10).await, scene.on_board(10).await), (None, None));
}

/// Opens a connection and sends the head of a request.
async fn begin(scene: &Scene, content_type: &str, content_length: usize) -> TcpStream {
    let address = scene.url("").trim_start_matches("http://").to_owned();
    let mut socket = TcpStream::connect(&address).await.unwrap();
    let head = format!(
        "POST /manifests HTTP/1.1\r\nhost: {address}\r\ncontent-type: {content_type}\r\ncontent-length: {content_length}\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket
}

/// The response, up to where the server closes the connection or pauses.
async fn read(socket: &mut TcpStream) -> String {
    let (mut text, mut piece) = (Vec::new(), [0; 4096]);
    while !text.ends_with(b"}") {
        let read = tokio::time::timeout(tests::PATIENCE, socket.read(&mut piece)).await.expect("a response comes");
        match read {
            Ok(len) if len > 0 => text.extend_from_slice(&piece[..len]),
            _ => break,
        }
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_before_it_is_read() {
    let scene = Scene::start().await;
    const GIGABYTE: usize = 1 << 30;
    // More than the limit of a document, and no more.
    let mut socket = begin(&scene, JSON, GIGABYTE).await;
    socket.write_all(&[b' '; 70 * 1024]).await.unwrap();
    let response = read(&mut socket).await;
    assert!(response.starts_with("HTTP/1.1 413") && response.contains("body_large"), "{response}");

    // More than the limit of a whole body, in a part that would be stored.
    let mut socket = begin(&scene, PARTS, GIGABYTE).await;
    let document = part("manifest", JSON, r#"{"ride_id":7,"passengers":[]}"#);
    let photo = part("photo", "image/png", "");
    socket.write_all(format!("{document}{}", photo.trim_end()).as_bytes()).await.unwrap();
    socket.write_all(b"\r\n\r\n").await.unwrap();
    let megabyte = vec![7; 1 << 20];
    let (mut reader, mut writer) = socket.into_split();
    let writing = tokio::spawn(async move {
        let mut sent = 0;
        while sent < 64 && writer.write_all(&megabyte).await.is_ok() {
            sent += 1;
        }
        (writer, sent)
    });
    let mut response = [0; 12];
    tokio::time::timeout(tests::PATIENCE, reader.read_exact(&mut response)).await.expect("a response comes").unwrap();
    assert_eq!(&response, b"HTTP/1.1 413");
    writing.abort();
    assert_nothing_is_left(&scene).await;
}

#[tokio::test]
async fn a_body_that_stops_is_given_up() {
    let scene = Scene::start().await;
    let document = part("manifest", JSON, r#"{"ride_id":7,"passengers":[]}"#);
    let mut sockets = [begin(&scene, JSON, 1000).await, begin(&scene, PARTS, 1000).await];
    sockets[0].write_all(b"{\"ride_id\":").await.unwrap();
    sockets[1].write_all(document.as_bytes()).await.unwrap();
    for socket in &mut sockets {
        let response = read(socket).await;
        assert!(response.starts_with("HTTP/1.1 408") && response.contains("body_slow"), "{response}");
    }
    // A client that leaves in the middle of its body leaves nothing either.
    let mut socket = begin(&scene, PARTS, 100_000).await;
    socket.write_all(document.as_bytes()).await.unwrap();
    drop(socket);
    assert_eq!(send(&scene, JSON, manifest(8, &["Ada"]).to_string()).await.0, 200);
    assert_eq!(scene.world.number("SELECT count(*) FROM units").await, 1);
    wait_until("no file is left", async || scene.spooled() == 0).await;
}

/// A server that asks to be left alone for so many seconds, once. Returns its URL, and when it was told.
async fn busy_server(retry_after_s: u64) -> (String, Arc<Mutex<Vec<Instant>>>) {
    let told: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let noted = Arc::clone(&told);
    let respond = async move || {
        let mut told = noted.lock().unwrap();
        told.push(Instant::now());
        match told.len() {
            1 => Err((StatusCode::TOO_MANY_REQUESTS, [("retry-after", retry_after_s.to_string())], "busy")),
            _ => Ok(StatusCode::NO_CONTENT),
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/", post(respond))).await });
    (url, told)
}

#[tokio::test]
async fn a_server_that_asks_to_be_left_alone_is_left_alone() {
    const RETRY_AFTER: Duration = Duration::from_secs(4);
    let (url, told) = busy_server(RETRY_AFTER.as_secs()).await;
    let scene = Scene::start_with(free_port(), &config(&url, "")).await;
    let response = scene.post(&manifest(7, &["Ada"])).send().await.unwrap();
    assert_eq!(response.status(), 429, "{}", response.text().await.unwrap());
    wait_until("it is committed", async || scene.unit(1).await["state"] == "committed").await;
    assert_eq!(scene.unit(1).await["attempt"], 2);
    let told = told.lock().unwrap();
    // The first pause would be one second.
    assert!(told.len() == 2 && told[1] - told[0] >= RETRY_AFTER, "{:?}", told[1] - told[0]);
}

/// A unit that waits because the receiver is away, and the declaration.
async fn with_waiting_unit() -> (Scene, String) {
    let port = free_port();
    let declaration = config(&format!("http://127.0.0.1:{port}/notices"), "");
    let mut scene = Scene::start_with(port, &declaration).await;
    scene.notices.signal(Signal::SIGKILL);
    scene.notices.ended().await;
    let response = scene.post(&manifest(7, &["Ada"])).send().await.unwrap();
    assert_eq!(response.status(), 502);
    scene.container.signal(Signal::SIGTERM);
    assert!(scene.container.ended().await.success());
    (scene, declaration)
}

fn destinations(unit: &Value) -> Vec<&str> {
    unit["parts"].as_array().unwrap().iter().map(|part| part["destination"].as_str().unwrap()).collect()
}

const ALL: &str = r#"destinations = ["rows", "photos", "board", "notices"]"#;

#[tokio::test]
async fn a_unit_keeps_the_destinations_that_it_was_created_with() {
    let (mut scene, declaration) = with_waiting_unit().await;
    let second = "[destination.second]\nkind = \"board\"\nredis = \"REDIS_URL\"\nprefix = \"${BOARD_PREFIX}:second\"\n";
    let added = declaration.replace(ALL, r#"destinations = ["rows", "photos", "board", "second", "notices"]"#) + second;
    scene.start_again(Some(added)).await;
    scene.start_notices_again();
    wait_until("it is committed", async || scene.unit(1).await["state"] == "committed").await;
    assert_eq!(destinations(&scene.unit(1).await), ["board", "notices", "photos", "rows"]);
    let stored: Value = scene.post(&manifest(8, &["Bo"])).send().await.unwrap().json().await.unwrap();
    assert_eq!(destinations(&stored), ["board", "notices", "photos", "rows", "second"], "{stored}");
}

#[tokio::test]
async fn a_destination_is_removed_only_after_its_units_are_settled() {
    let (mut scene, declaration) = with_waiting_unit().await;
    let notices = declaration.find("[destination.notices]").unwrap();
    let removed = declaration[..notices].replace(ALL, r#"destinations = ["rows", "photos", "board"]"#);
    let log = scene.refused(&removed).await;
    assert!(
        log.contains("the destination notices is not declared, and units are open") && log.contains("retired = true"),
        "{log}"
    );

    // Retired, it gets no new units, and finishes those that it has.
    let retired = format!("{removed}{}\nretired = true\n", &declaration[notices..]);
    scene.start_again(Some(retired)).await;
    let stored: Value = scene.post(&manifest(8, &["Bo"])).send().await.unwrap().json().await.unwrap();
    assert_eq!((stored["state"].as_str(), destinations(&stored)), (Some("committed"), vec!["board", "photos", "rows"]));
    scene.start_notices_again();
    wait_until("it is committed", async || scene.unit(1).await["state"] == "committed").await;
    assert_eq!(scene.told(1).await.last().map(|(_, state)| state.as_str()), Some("stored"));
    scene.container.signal(Signal::SIGTERM);
    assert!(scene.container.ended().await.success());
    scene.start_again(Some(removed)).await;
}

#[tokio::test]
async fn a_destination_moves_only_after_its_units_are_settled() {
    let (mut scene, declaration) = with_waiting_unit().await;
    let moved = declaration.replace("prefix = \"${BOARD_PREFIX}\"", "prefix = \"${BOARD_PREFIX}:moved\"");
    assert_ne!(moved, declaration);
    let log = scene.refused(&moved).await;
    assert!(log.contains("the destination board is declared at another place"), "{log}");
    assert!(
        log.contains("declare the old place again, or wait until they are settled (container units list)"),
        "{log}"
    );
    scene.start_again(None).await;
    scene.start_notices_again();
    wait_until("it is committed", async || scene.unit(1).await["state"] == "committed").await;
    scene.container.signal(Signal::SIGTERM);
    assert!(scene.container.ended().await.success());
    scene.start_again(Some(moved)).await;
}

/// C5.
#[tokio::test]
async fn a_destination_that_is_away_holds_back_only_units_that_need_it() {
    let port = free_port();
    let declaration = config(&format!("http://127.0.0.1:{port}/notices"), "");
    let notes = "[[resource]]\nname = \"notes\"\nsubject = \"id\"\ndocument = \"note\"\ndestinations = [\"rows\"]\n";
    let mut scene = Scene::start_with(port, &(notes.to_owned() + &declaration)).await;
    scene.notices.signal(Signal::SIGKILL);
    scene.notices.ended().await;
    wait_until("the breaker is open", async || {
        let response = scene.post(&manifest(7, &["Ada"])).send().await.unwrap();
        let (status, location) = (response.status().as_u16(), response.headers().contains_key("location"));
        let unit: Value = response.json().await.unwrap();
        assert!([502, 503].contains(&status) && location, "{status}: {unit}");
        unit["state"] == "queued"
    })
    .await;
    let uow = scene.world.number("SELECT max(uow) FROM units").await;
    let waiting = scene.unit(uow).await;
    assert_eq!(
        (&waiting["state"], &waiting["attempt"]),
        (&json!("queued"), &json!(1)),
        "no attempt is burnt: {waiting}"
    );
    for id in 0..20 {
        let post = scene.client.post(scene.url("/notes")).json(&json!({ "id": id }));
        assert_eq!(post.send().await.unwrap().status(), 200);
    }
    scene.start_notices_again();
    wait_until("all are committed", async || {
        scene.world.number("SELECT count(*) FROM units WHERE state <> 'committed'").await == 0
    })
    .await;
}
