//! Random malformed and incomplete requests.

use rand::RngExt;
use rand::rngs::StdRng;

use crate::fuzz_requests::{FORM, JSON, pick, post};

/// The distance of rides whose client leaves before the response: as sent, and in mm.
pub const UNANSWERED: (&str, i64) = ("777777777", 777_777_777_000);

/// A malformed or incomplete request, which can never create a ride.
pub fn malformed(rng: &mut StdRng) -> Vec<u8> {
    let body = "{\"distence\":12.5}";
    let mut bytes = format!(
        "POST /rides HTTP/1.1\r\nhost: x\r\ncontent-type: {JSON}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes();
    match rng.random_range(0..10) {
        0 => return (0..rng.random_range(1..300)).map(|_| rng.random()).collect(),
        1 => bytes.truncate(rng.random_range(0..bytes.len())),
        2 => {
            let name = *pick(rng, &["x-large: ", "cookie: ", ""]);
            let value = "v".repeat(rng.random_range(20_000..80_000));
            return format!("GET / HTTP/1.1\r\n{name}{value}\r\n\r\n").into_bytes();
        }
        3 => return format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(rng.random_range(101..1_000))).into_bytes(),
        4 => {
            let framing = *pick(
                rng,
                &[
                    "content-length: 5\r\ncontent-length: 6",
                    "content-length: -1",
                    "content-length: 99999999999999999999",
                    "content-length: 1e1",
                    "transfer-encoding: chunked\r\ncontent-length: 3",
                    "transfer-encoding: gzip",
                    "transfer-encoding: chunked, chunked",
                    "transfer-encoding: x\r\ntransfer-encoding: chunked",
                    "expect: 200-ok",
                ],
            );
            return format!("POST /rides HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\nzz\r\n{body}").into_bytes();
        }
        5 => {
            let line = *pick(
                rng,
                &[
                    "GET",
                    "GET /",
                    "GET / HTTP/2.0",
                    "GET / HTTP/1.10",
                    "GET  / HTTP/1.1",
                    " GET / HTTP/1.1",
                    "GET / / HTTP/1.1",
                    "CONNECT /rides HTTP/1.1",
                    "CONNECT x:1 HTTP/1.1",
                    "GET \u{1} HTTP/1.1",
                    "GET /\u{e9} HTTP/1.1",
                    "PRI * HTTP/2.0",
                ],
            );
            return format!("{line}\r\nhost: x\r\n\r\n").into_bytes();
        }
        6 => {
            let long = "a".repeat(rng.random_range(10_000..70_000));
            return format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes();
        }
        _ => {
            for _ in 0..rng.random_range(1..6) {
                let place = rng.random_range(0..bytes.len());
                bytes[place] = rng.random();
            }
        }
    }
    bytes
}

/// A whole or truncated ride, whose client leaves before the response.
pub fn left_alone(rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = post(rng, FORM, format!("distance={}", UNANSWERED.0).as_bytes()).bytes;
    if rng.random_bool(0.5) {
        // A cut within the digits creates no other ride: the body is then shorter than its content-length.
        bytes.truncate(rng.random_range(0..bytes.len()));
    }
    bytes
}
