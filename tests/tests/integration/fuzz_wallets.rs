//! Random requests to wallets, valid and odd.

use rand::RngExt;
use rand::rngs::StdRng;

use crate::fuzz_requests::{Expected, FORM, JSON, NUMBERS, Request, odd_header, pick, post_to};

/// The wallets of the run. They are few, so that clients meet.
const WALLETS: &[&str] = &[
    "28skwt5B8zTrs6AqBWrSgCHLcRL",
    "29p8aA0XrY2slsqmEyNzBlS7f64",
    "000000000000000000000000000",
    "aWgEPTl1tmebfsQzFP4bxwgy80V",
];

/// Texts in the place of a wallet's id.
const NO_WALLETS: &[&str] =
    &["", "x", "..", "%00", "world", "aWgEPTl1tmebfsQzFP4bxwgy80W", "28skwt5B8zTrs6AqBWrSgCHLc", "%FF%FE"];

/// A wallet, or rarely something else.
fn id(rng: &mut StdRng) -> &'static str {
    let ids = if rng.random_bool(0.9) { WALLETS } else { NO_WALLETS };
    ids[rng.random_range(0..ids.len())]
}

/// A new wallet, or an attempt to change one. Some parts may be invalid.
pub fn command(rng: &mut StdRng) -> Request {
    let endpoint = *pick(
        rng,
        &["credit", "credit", "credit", "debit", "debit", "transfer", "transfer", "close", "credit/now", ""],
    );
    let path = if rng.random_bool(0.05) { "/wallets".to_owned() } else { format!("/wallet/{}/{endpoint}", id(rng)) };
    let amount = match rng.random_range(0..10) {
        0..6 => format!("{}.{:02}", rng.random_range(0..1_000), rng.random_range(1..100)),
        6 => format!("{}e-{}", rng.random::<u32>(), rng.random_range(0..12)),
        _ => (*pick(rng, NUMBERS)).to_owned(),
    };
    let to = if endpoint == "transfer" || rng.random_bool(0.05) {
        format!("\"to\":\"{}\",", id(rng))
    } else {
        String::new()
    };
    let body = match rng.random_range(0..20) {
        0 => format!("{{\"amount\":{amount},\"amount\":{amount}}}"),
        1 => format!("amount={amount}"),
        2 => format!("{{\"amount\":{}", "[".repeat(rng.random_range(1..5_000))),
        3 => format!(" {{ \"amo\\u0075nt\" :\n{amount}, \"x\":{{}} }} "),
        4 => format!("{{{to}\"amount\":{amount}}}")[..rng.random_range(0..10)].to_owned(),
        _ => format!("{{{to}\"amount\":{amount}}}"),
    };
    let key = match rng.random_range(0..20) {
        0..6 => format!("idempotency-key: an-odd-attempt-{}\r\n", rng.random_range(0..1_000)),
        6 => format!("idempotency-key: {}\r\n", "k".repeat(rng.random_range(0..300))),
        7 => "idempotency-key: \"k\r\nidempotency-key: \u{ff}\r\n".to_owned(),
        _ => String::new(),
    };
    let content_type = *pick(rng, &[JSON, JSON, JSON, JSON, FORM, "", "text/plain", "a/b+json"]);
    let headers = key + &odd_header(rng);
    Request { expected: Expected::Wallet, ..post_to(&path, &headers, content_type, body.as_bytes()) }
}

/// A read of a wallet. Some parts may be invalid.
pub fn read(rng: &mut StdRng) -> Request {
    let method = *pick(rng, &["GET", "GET", "GET", "GET", "HEAD", "PUT", "DELETE", "get"]);
    let endpoint = *pick(rng, &["", "/balance", "/transactions", "/transactions", "/credit", "/", "/balance/x"]);
    let number = if rng.random_bool(0.5) {
        rng.random_range(-1..2_000).to_string()
    } else {
        (*pick(rng, &["", "x", "+1", "1e1", "%FF", "9223372036854775808"])).to_owned()
    };
    let query = match rng.random_range(0..6) {
        0 => format!("?min_version={number}"),
        1 => format!("?before={number}&limit=3"),
        2 => format!("?limit={number}&min_version=1"),
        3 => format!("?min_version=0&min_version={number}"),
        _ => String::new(),
    };
    let id = id(rng);
    let head = format!("{method} /wallet/{id}{endpoint}{query} HTTP/1.1\r\nhost: x\r\n{}\r\n", odd_header(rng));
    Request { bytes: head.into_bytes(), expected: Expected::Wallet, is_head: method == "HEAD", is_last: false }
}
