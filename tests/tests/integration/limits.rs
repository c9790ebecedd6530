//! Slow, large and many clients: each gets its share, and no client disturbs another.

use std::time::Duration;

use serde_json::json;
use tests::{Process, World, binary, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use web::Limits;

use crate::api::Api;

const RIDE: &[u8] = b"POST /rides HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\n\
                      content-length: 10\r\n\r\ndistance=5";

async fn start(world: &World, limits: Limits) -> Api {
    let limits = api::Limits { http: limits, ..api::Limits::default() };
    Api::start_within(&world.database_url().parse().unwrap(), limits).await
}

async fn connect(api: &Api) -> TcpStream {
    TcpStream::connect(("127.0.0.1", api.port())).await.unwrap()
}

/// Reads the bytes that are there, at most `len`.
async fn read_some(socket: &mut TcpStream, len: usize) -> String {
    let mut bytes = vec![0; len];
    let len = timeout(tests::PATIENCE, socket.read(&mut bytes)).await.expect("an answer").unwrap();
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

/// Reads until the server closes the connection.
async fn read_all(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // The server may close the connection before it has read all our bytes, which is an error on this side.
    let _ = timeout(tests::PATIENCE, socket.read_to_end(&mut bytes)).await.expect("the connection is closed");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends `start`, then one byte at a time, until the server closes the connection. Returns the response.
async fn dribble(mut socket: TcpStream, start: &'static str) -> String {
    socket.write_all(start.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let mut bytes = [0; 1000];
        // This time-out only sets the pace of the client.
        match timeout(Duration::from_millis(100), socket.read(&mut bytes)).await {
            Err(_) => {
                // The server may have closed the connection meanwhile; the next read returns that.
                let _ = socket.write_all(b"a").await;
            }
            Ok(Ok(len @ 1..)) => answer.extend_from_slice(&bytes[..len]),
            Ok(_) => return String::from_utf8(answer).unwrap(),
        }
    }
}

#[tokio::test]
async fn slow_clients_are_left_and_the_others_are_served_meanwhile() {
    let world = World::new().await;
    let (header_wait, body_wait) = (Duration::from_secs(2), Duration::from_secs(2));
    let api = start(&world, Limits { header_wait, body_wait, ..Limits::default() }).await;
    let (mut headers, mut bodies) = (JoinSet::new(), JoinSet::new());
    for _ in 0..200 {
        headers.spawn(dribble(connect(&api).await, "POST /rides HTTP/1.1\r\nhost: x\r\nx-slow: "));
    }
    for _ in 0..100 {
        let start =
            "POST /rides HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9000\r\n\r\n{";
        bodies.spawn(dribble(connect(&api).await, start));
    }
    let mut ride_count = 0;
    let others = async {
        loop {
            assert_eq!(api.post_form("distance=5").await.0, 201);
            ride_count += 1;
        }
    };
    let slow = async {
        while let Some(answer) = headers.join_next().await {
            assert_eq!(answer.unwrap(), "", "there is no request to answer");
        }
        while let Some(answer) = bodies.join_next().await {
            let answer = answer.unwrap();
            assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains(r#""code":"body_too_slow""#), "{answer}");
            assert!(answer.contains("connection: close\r\n"), "{answer}");
        }
    };
    tokio::select! {
        () = others => {}
        closed = timeout(tests::PATIENCE, slow) => closed.expect("the slow connections are closed"),
    }
    assert!(ride_count > 0, "no ride was taken meanwhile");
}

#[tokio::test]
async fn an_idle_connection_may_rest_longer_than_a_header_may_take() {
    let world = World::new().await;
    let (header_wait, idle_wait) = (Duration::from_millis(500), Duration::from_secs(2));
    let api = start(&world, Limits { header_wait, idle_wait, ..Limits::default() }).await;
    // A client that sends nothing: its header is as slow as a header can be.
    assert_eq!(read_all(&mut connect(&api).await).await, "");
    let mut socket = connect(&api).await;
    socket.write_all(RIDE).await.unwrap();
    assert!(read_some(&mut socket, 1000).await.starts_with("HTTP/1.1 201 "));
    let answered_at = Instant::now();
    assert_eq!(read_all(&mut socket).await, "");
    assert!(answered_at.elapsed() > 3 * header_wait, "closed after {:?}", answered_at.elapsed());
    // Once the next header has begun, `header_wait` limits it.
    let mut socket = connect(&api).await;
    socket.write_all(RIDE).await.unwrap();
    assert!(read_some(&mut socket, 1000).await.starts_with("HTTP/1.1 201 "));
    let answered_at = Instant::now();
    socket.write_all(&RIDE[..20]).await.unwrap();
    assert_eq!(read_all(&mut socket).await, "");
    assert!(answered_at.elapsed() < idle_wait, "closed after {:?}", answered_at.elapsed());
}

#[tokio::test]
async fn an_oversized_header_is_refused_and_one_below_the_bound_is_not() {
    let world = World::new().await;
    let api = start(&world, Limits::default()).await;
    let with_header = |header: &str| format!("GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n");
    let long = |len| with_header(&format!("cookie: {}\r\n", "c".repeat(len)));
    for (request, status) in [
        (long(15_000), 200),
        (long(17_000), 431),
        (long(1_000_000), 431),
        (with_header(&"a: b\r\n".repeat(90)), 200),
        (with_header(&"a: b\r\n".repeat(200)), 431),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000)), 431),
    ] {
        let mut socket = connect(&api).await;
        let (mut reader, mut writer) = socket.split();
        let mut answer = Vec::new();
        // The server closes the connection before it has read all of the largest request.
        let _ = tokio::join!(writer.write_all(request.as_bytes()), reader.read_to_end(&mut answer));
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer} to {} bytes", request.len());
    }
}

#[tokio::test]
async fn who_finds_all_connections_taken_is_served_when_one_is_free() {
    let world = World::new().await;
    let api = start(&world, Limits { connection_count_max: 2, ..Limits::default() }).await;
    let (mut first, mut second) = (connect(&api).await, connect(&api).await);
    for socket in [&mut first, &mut second] {
        socket.write_all(RIDE).await.unwrap();
        assert!(read_some(socket, 1000).await.starts_with("HTTP/1.1 201 "));
    }
    let mut third = connect(&api).await;
    third.write_all(RIDE).await.unwrap();
    // A slow response would look the same. The number of rides below proves that the third request waits.
    let waited = timeout(Duration::from_millis(300), third.readable()).await;
    assert!(waited.is_err(), "the third client was served beside the two before it");
    assert_eq!(world.sql_totals().await.0, 2);
    drop(first);
    assert!(read_some(&mut third, 1000).await.starts_with("HTTP/1.1 201 "));
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answers_is_left() {
    let world = World::new().await;
    world.write_rides(1_000).await;
    let limits = Limits { connection_count_max: 1, response_wait: Duration::from_secs(1), ..Limits::default() };
    let api = start(&world, limits).await;
    let mut socket = connect(&api).await;
    // Each response has some 80 KB: together they exceed all buffers between server and client.
    let requests = "GET /rides?limit=1000 HTTP/1.1\r\nhost: x\r\n\r\n".repeat(300);
    socket.write_all(requests.as_bytes()).await.unwrap();
    // The api takes one connection: the next client is served when this client has lost it.
    assert_eq!(api.post_form("distance=5").await.0, 201);
    let answers = read_all(&mut socket).await;
    let answer_count = answers.matches("HTTP/1.1 200 ").count();
    assert!((1..300).contains(&answer_count), "{answer_count} answers");
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_with_503() {
    let world = World::new().await;
    let api = start(&world, Limits { request_wait: Duration::from_millis(500), ..Limits::default() }).await;
    let mut locker = world.connect().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE rides IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut socket = connect(&api).await;
    socket.write_all(RIDE).await.unwrap();
    let answer = read_some(&mut socket, 1000).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1\r\n"), "{answer}");
    // This request waits behind the first. It is not written once its client has its response.
    assert_eq!(api.post_form("distance=7").await.1["code"], json!("unavailable"));
    lock.commit().await.unwrap();
    wait_until("rides are taken again", async || api.post_form("distance=9").await.0 == 201).await;
    assert_eq!(world.number("SELECT count(*) FROM rides WHERE distance_mm = 7000").await, 0);
}

#[tokio::test]
async fn with_few_open_files_the_api_takes_few_connections_and_goes_on() {
    let world = World::new().await;
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 80 && exec \"$0\" --api-port 0"]).arg(binary("api"));
    command.env("DATABASE_URL", world.database_url());
    let mut process = Process::spawn("api", command);
    process.wait_for("api started").await;
    let output = process.output();
    assert!(output.contains("connection_count_max=16"), "{output}");
    let address = output.split("address=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let mut sockets = Vec::new();
    for _ in 0..100 {
        sockets.push(TcpStream::connect(&address).await.unwrap());
    }
    process.wait_for("all connections are taken").await;
    drop(sockets);
    let mut socket = TcpStream::connect(&address).await.unwrap();
    socket.write_all(RIDE).await.unwrap();
    assert!(read_some(&mut socket, 1000).await.starts_with("HTTP/1.1 201 "));
    assert!(!process.output().contains("cannot accept"), "{}", process.output());
    process.stop().await;
}
