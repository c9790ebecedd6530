//! Random well-formed requests, valid and odd.

use rand::RngExt;
use rand::rngs::StdRng;

/// The response that must come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// 201, with a ride of this distance in mm.
    Ride(i64),
    /// Any response but a 5xx; an error has the shape of all errors.
    Response,
    /// The same, of a wallet.
    Wallet,
}

/// A well-formed request.
#[derive(Debug)]
pub struct Request {
    pub bytes: Vec<u8>,
    pub expected: Expected,
    pub is_head: bool,
    /// Whether the server may close the connection after the response. It does so instead of reading a long body.
    pub is_last: bool,
}

pub const FORM: &str = "application/x-www-form-urlencoded";
pub const JSON: &str = "application/json";

/// Numbers in many notations, and texts that look like numbers.
pub const NUMBERS: &[&str] = &[
    "1",
    "0",
    "-0",
    "-1",
    "+1",
    "1.",
    ".1",
    "1e3",
    "1E+3",
    "1e-3",
    "1e",
    "1e400",
    "-1e400",
    "1e-400",
    "1e99999999999",
    "5e-324",
    "1.7976931348623157e308",
    "4.9",
    "0.0005",
    "0.00049",
    "NaN",
    "nan",
    "inf",
    "-Infinity",
    "0x1A",
    "0x",
    "0x1.8p3",
    "0b11",
    "0o7",
    "1_000",
    "1__0",
    "_1",
    "1,5",
    "1 000",
    "1d",
    "1f64",
    "١٢٣",
    "１",
    "½",
    "1e1e1",
    "--1",
    "1000000000",
    "1000000000.001",
    "9007199254740993",
    "9223372036854775807",
    "99999999999999999999999",
    "1\u{0}",
    "",
    " ",
    "\u{a0}1",
    "true",
    "null",
    "[]",
    "{}",
    "\"1\"",
    "\"\"",
    "\"\\u0031\"",
    "\"\\ud800\"",
    "[1]",
    "{\"a\":1}",
];

pub fn pick<'a, T>(rng: &mut StdRng, from: &'a [T]) -> &'a T {
    &from[rng.random_range(0..from.len())]
}

/// A request that every server must understand. Many are not valid rides.
pub fn well_formed(rng: &mut StdRng) -> Request {
    match rng.random_range(0..100) {
        0..40 => good_ride(rng),
        40..70 => odd_body(rng),
        70..75 => booking(rng),
        75..92 => odd_target(rng),
        _ => odd_framing(rng),
    }
}

/// A valid ride, with its distance in a random notation.
pub fn good_ride(rng: &mut StdRng) -> Request {
    let distance_mm: i64 = rng.random_range(1..10_000_000);
    let (metres, mm) = (distance_mm / 1000, distance_mm % 1000);
    let plain = format!("{metres}.{mm:03}");
    let (content_type, body) = match rng.random_range(0..8) {
        0 => (FORM, format!("distance={plain}")),
        1 => (FORM, format!("a=%00&distance=+{distance_mm}e-3+&b")),
        2 => (FORM, format!("d%69stance=%20{metres}%2E{mm:03}")),
        3 => ("application/vnd.ride+json", format!("{{\"distance\":{plain}}}")),
        4 => (JSON, format!("{{\"x\":{{\"distance\":[null]}},\"distance\":\"{plain}\"}}")),
        5 => (JSON, format!(" {{\"d\\u0069stance\" :\n{distance_mm}E-3 }} ")),
        6 => (JSON, format!("{{\"distance\":{plain}{}}}", "0".repeat(rng.random_range(0..300)))),
        _ => ("application/json; charset=\"x\"", format!("{{\"distance\":0.{distance_mm:020}e17}}")),
    };
    let headers = odd_header(rng);
    let mut request = post_with(&headers, content_type, body.as_bytes());
    // A compressed body is refused. `authorization` alone makes no booking.
    if !headers.contains("content-encoding") {
        request.expected = Expected::Ride(distance_mm);
    }
    request
}

/// A booking with one of a few users, keys and places. Some parts may be invalid.
fn booking(rng: &mut StdRng) -> Request {
    let user = *pick(
        rng,
        &[
            "user@example.com",
            "user@example.com",
            "user@example.com",
            "user-bad-source@example.com",
            "nobody@example.com",
            "",
            "user@example.com\u{ff}",
            "Bearer user@example.com",
        ],
    );
    let number = rng.random_range(0..40);
    let key = match rng.random_range(0..10) {
        0..6 => format!("a-key-of-the-odd-requests-{number}"),
        6 => format!("\"a-key-of-the-odd-requests-{number}\""),
        7 => "k".repeat(rng.random_range(0..300)),
        8 => format!("\"a-key-of-the-odd-requests-{number}"),
        _ => "a-key\u{ff}-of-the-odd-requests".to_owned(),
    };
    let latitude = *pick(rng, &["1", "1", "1", "1.0", "1e0", "91"]);
    let longitude = if rng.random_bool(0.9) { "2" } else { *pick(rng, NUMBERS) };
    let (content_type, body) = if rng.random_bool(0.5) {
        (FORM, format!("origin_lat={latitude}&origin_lon=2&target_lat=3&target_lon={longitude}"))
    } else {
        (JSON, format!("{{\"origin_lat\":{latitude},\"origin_lon\":2,\"target_lat\":3,\"target_lon\":{longitude}}}"))
    };
    let headers = match rng.random_range(0..10) {
        0 => format!("authorization: {user}\r\n"),
        1 => format!("idempotency-key: {key}\r\n"),
        2 => String::new(),
        3 => format!("authorization: {user}\r\nidempotency-key: {key}\r\nidempotency-key: {key}\r\n"),
        _ => format!("authorization: {user}\r\nidempotency-key: {key}\r\n"),
    };
    post_with(&headers, content_type, body.as_bytes())
}

/// A body that does not fit its content type, or is odd.
fn odd_body(rng: &mut StdRng) -> Request {
    let number = if rng.random_bool(0.7) {
        (*pick(rng, NUMBERS)).to_owned()
    } else {
        (0..rng.random_range(1..40)).map(|_| *pick(rng, &['0', '1', '9', '.', 'e', '-', '+', '_', 'x'])).collect()
    };
    let deep = rng.random_range(1..5_000);
    let body = match rng.random_range(0..13) {
        0..3 => format!("distance={number}").into_bytes(),
        3..6 => format!("{{\"distance\":{number}}}").into_bytes(),
        6 => format!("{{\"distance\":1,\"distance\":{number}}}").into_bytes(),
        7 => format!("distance={number}&distance=1").into_bytes(),
        8 => format!("{{\"distance\":{}", "[".repeat(deep)).into_bytes(),
        9 => format!("{{\"a\":{}1{},\"distance\":{number}}}", "[".repeat(deep), "]".repeat(deep)).into_bytes(),
        10 => (0..rng.random_range(0..200)).map(|_| rng.random()).collect(),
        11 => b"{\"distance\":12.5}"[..rng.random_range(0..16)].to_vec(),
        _ => format!("distance={}", "1".repeat(rng.random_range(1..30_000))).into_bytes(),
    };
    let content_type =
        *pick(rng, &[FORM, FORM, JSON, JSON, JSON, "text/plain", "", "application/JSON;", ";;", "a/b+json", "\u{ff}"]);
    post(rng, content_type, &body)
}

/// Paths, queries and methods, existing and not.
fn odd_target(rng: &mut StdRng) -> Request {
    let method =
        *pick(rng, &["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "X-Y!"]);
    let long = "a".repeat(rng.random_range(1..4_000));
    let path = *pick(
        rng,
        &[
            "/rides",
            "/rides/1",
            "/rides/-1",
            "/rides/9223372036854775808",
            "/rides/%00",
            "/rides/%FF%FE",
            "/rides/%",
            "/rides/1/2",
            "/rides/",
            "//rides",
            "/rides/..",
            "/RIDES",
            "/",
            "*",
            "/healthz",
            "http://x/rides/1",
            &long,
            "/%2e%2e/etc",
            "/rides;a=b",
        ],
    );
    let query = match rng.random_range(0..6) {
        0..3 => String::new(),
        3 => format!("?after={}&limit={}", rng.random::<i64>(), rng.random_range(-3..30)),
        4 => format!(
            "?limit={}",
            pick(rng, &["", "x", "%FF", "%", "1&limit=2", "1001", "1e1", "+1", "0x1", "99999999999999999999"])
        ),
        _ => format!("?{}", pick(rng, &["", "&&&", "=", "after", "after=%00", "a[]=1", "?", "limit=3&%zz"])),
    };
    // A request for the totals counts all rides, so it is rare.
    let path = if rng.random_bool(0.01) { "/totals" } else { path };
    let path = if path == long { format!("/{long}") } else { path.to_owned() };
    // The target `*` has no query.
    let query = if path == "*" { String::new() } else { query };
    let head = format!("{method} {path}{query} HTTP/1.1\r\nhost: x\r\n{}\r\n", odd_header(rng));
    Request { bytes: head.into_bytes(), expected: Expected::Response, is_head: method == "HEAD", is_last: false }
}

/// Chunked bodies, bodies of requests that take none, HTTP/1.0, and clients that expect 100 Continue.
fn odd_framing(rng: &mut StdRng) -> Request {
    let (body, last) = (format!("distance={}", pick(rng, NUMBERS)), rng.random_bool(0.5));
    let chunks = format!("{:x};ext=\"1\"\r\n{body}\r\n0\r\nx-trailer: 1\r\n\r\n", body.len());
    let (len, close) = (body.len(), if last { "connection: close\r\n" } else { "" });
    let text = match rng.random_range(0..20) {
        0..12 => format!(
            "POST /rides HTTP/1.1\r\nhost: x\r\ncontent-type: {FORM}\r\n{close}transfer-encoding: chunked\r\n\r\n{chunks}"
        ),
        12..17 => format!(
            "POST /rides HTTP/1.1\r\nhost: x\r\ncontent-type: {FORM}\r\n{close}expect: 100-continue\r\ncontent-length: {len}\r\n\r\n{body}"
        ),
        17 => format!("POST /rides HTTP/1.0\r\ncontent-type: {FORM}\r\ncontent-length: {len}\r\n\r\n{body}"),
        18 => format!("DELETE /rides HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"),
        _ => format!("PUT /x HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len}\r\n\r\n{body}"),
    };
    let is_last = last || !text.starts_with("POST /rides HTTP/1.1");
    Request { bytes: text.into_bytes(), expected: Expected::Response, is_head: false, is_last }
}

pub fn post(rng: &mut StdRng, content_type: &str, body: &[u8]) -> Request {
    post_with(&odd_header(rng), content_type, body)
}

fn post_with(headers: &str, content_type: &str, body: &[u8]) -> Request {
    post_to("/rides", headers, content_type, body)
}

pub fn post_to(path: &str, headers: &str, content_type: &str, body: &[u8]) -> Request {
    let content_type = match content_type {
        "" => String::new(),
        content_type => format!("content-type: {content_type}\r\n"),
    };
    let len = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{content_type}{headers}content-length: {len}\r\n\r\n");
    // Each character becomes one byte: values of headers need not be UTF-8.
    let mut bytes: Vec<u8> = head.chars().map(|c| c as u8).collect();
    bytes.extend(body);
    Request { bytes, expected: Expected::Response, is_head: false, is_last: body.len() > 16 * 1024 }
}

pub fn odd_header(rng: &mut StdRng) -> String {
    match rng.random_range(0..12) {
        0 => format!("x-long: {}\r\n", "v".repeat(rng.random_range(0..4_000))),
        1 => "x-many: 1\r\n".repeat(rng.random_range(1..90)),
        2 => "accept: text/plain;q=0\r\naccept-encoding: br;q=9, *;q=x\r\n".to_owned(),
        3 => "content-encoding: gzip\r\nrange: bytes=9-1\r\nif-none-match: *\r\n".to_owned(),
        4 => "cookie: =;=;\r\nauthorization: Basic %%%\r\n".to_owned(),
        5 => "upgrade: h2c\r\nhttp2-settings: AAMA\r\n".to_owned(),
        _ => String::new(),
    }
}
