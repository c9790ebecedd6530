//! A hundred thousand odd requests to the real api: it never crashes, never hangs, and counts every ride and every cent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tests::{Payments, Process, World};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::fuzz_requests::{Expected, Request};
use crate::{fuzz_garbage, fuzz_requests, fuzz_wallets};

const CLIENT_COUNT: u64 = 25;
const REQUEST_COUNT_PER_CLIENT: usize = 4_100;
/// The most requests that a client sends before it reads the first response.
const PIPELINE_LEN_MAX: usize = 20;
/// Below the api's own limit for a request (15 s), which must not be reached.
const RESPONSE_WAIT: Duration = Duration::from_secs(12);

/// The message for a booked ride. The message for a guest's ride adds the distance.
const BOOKED: &str = "Payment accepted. Your pilot is on their way!";
/// The FROM clause that selects guests' rides.
const GUESTS: &str = "rides WHERE id NOT IN (SELECT ride_id FROM bookings)";

/// Counts of a client's requests and responses.
#[derive(Debug, Default)]
struct Tally {
    request_count: usize,
    /// Confirmed guests' rides.
    ride_count: i64,
    distance_mm: i64,
    /// The ids of booked rides.
    booked: BTreeSet<i64>,
    /// The events of accepted commands for wallets.
    events: BTreeSet<String>,
    /// The number of responses per status.
    statuses: BTreeMap<u16, usize>,
    left_count: i64,
    cut_count: usize,
}

struct Response {
    status: u16,
    closes: bool,
    body: Vec<u8>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_odd_requests_break_nothing() {
    let seed: u64 = std::env::var("FUZZ_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("FUZZ_SEED={seed} sends the same requests again");
    let world = World::new().await;
    let payments = Payments::start().await;
    let mut process = Process::start(&world, "api", &[&["--api-port", "0"], &payments.flags()[..]].concat());
    process.wait_for("api started").await;
    let output = process.output();
    let address = output.split("address=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let started_at = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENT_COUNT {
        clients.spawn(run_client(address.clone(), StdRng::seed_from_u64(seed.wrapping_add(client))));
    }
    let mut sum = Tally::default();
    while let Some(tally) = clients.join_next().await {
        let tally = tally.unwrap();
        sum.request_count += tally.request_count;
        sum.ride_count += tally.ride_count;
        sum.distance_mm += tally.distance_mm;
        sum.booked.extend(tally.booked);
        sum.events.extend(tally.events);
        for (status, count) in tally.statuses {
            *sum.statuses.entry(status).or_default() += count;
        }
        sum.left_count += tally.left_count;
        sum.cut_count += tally.cut_count;
    }
    println!("{sum:?} in {:?}", started_at.elapsed());
    assert!(sum.request_count >= 100_000, "{sum:?}");
    for status in [200, 201, 400, 401, 402, 404, 405, 409, 413, 415, 422, 431] {
        assert!(sum.statuses.contains_key(&status), "nothing was answered with {status}: {sum:?}");
    }

    let mut connection = connect(&address).await;
    let ride = fuzz_requests::good_ride(&mut StdRng::seed_from_u64(0));
    exchange(&mut connection, &[ride], &mut sum).await;
    drop(connection);
    assert!(process.is_running());
    let output = process.output();
    assert!(!output.to_lowercase().contains("panic") && !output.contains("ERROR"), "{output}");
    // The api has finished every request that it began.
    process.stop().await;
    let unanswered = format!("distance_mm = {}", fuzz_garbage::UNANSWERED.1);
    let query = format!("SELECT count(*), COALESCE(sum(distance_mm), 0)::bigint FROM {GUESTS} AND NOT {unanswered}");
    let row = world.client().query_one(&query, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (sum.ride_count, sum.distance_mm), "{sum:?}");
    let unanswered_count = world.number(&format!("SELECT count(*) FROM {GUESTS} AND {unanswered}")).await;
    assert!(unanswered_count <= sum.left_count, "{unanswered_count} of {}", sum.left_count);
    let staged_count = world.number("SELECT count(*) FROM staged_log_records WHERE object = 'ride'").await;
    let ride_count = world.number("SELECT count(*) FROM rides").await;
    assert_eq!(staged_count, ride_count, "each ride has its record");
    let query = "SELECT ride_id FROM bookings WHERE stripe_charge_id IS NOT NULL";
    let charged: BTreeSet<i64> = world.client().query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(charged, sum.booked);
    assert_eq!(payments.charges().await.len(), charged.len(), "every booked ride is charged once");
    check_money(&world, &sum.events).await;
}

/// Wallets have the events that clients were told of and no other, each with a record, and all money comes from the world.
async fn check_money(world: &World, told: &BTreeSet<String>) {
    let paid =
        "SELECT event_id::text FROM wallet_events WHERE accepted AND NOT (action = 'transfer' AND amount_minor > 0)";
    let paid = world.client().query(paid, &[]).await.unwrap();
    assert_eq!(paid.iter().map(|row| row.get(0)).collect::<BTreeSet<String>>(), *told);
    assert!(told.len() > 1_000, "{}", told.len());
    let sums = "SELECT (SELECT sum(balance_minor)::bigint FROM wallets),
                       sum(amount_minor) FILTER (WHERE accepted AND counterparty = 'world')::bigint, count(*),
                       (SELECT count(*) FROM staged_log_records WHERE object = 'wallet') FROM wallet_events";
    let sums = world.client().query_one(sums, &[]).await.unwrap();
    assert_eq!(sums.get::<_, i64>(0), sums.get::<_, i64>(1), "the balances are the credits less the debits");
    assert_eq!(sums.get::<_, i64>(2), sums.get::<_, i64>(3), "each event has its record");
}

async fn run_client(address: String, mut rng: StdRng) -> Tally {
    let mut tally = Tally::default();
    let mut connection = connect(&address).await;
    while tally.request_count < REQUEST_COUNT_PER_CLIENT {
        match rng.random_range(0..10) {
            0..6 => {
                let pipeline = pipeline(&mut rng);
                tally.request_count += pipeline.len();
                if !exchange(&mut connection, &pipeline, &mut tally).await {
                    connection = connect(&address).await;
                }
            }
            6..9 => {
                tally.request_count += 1;
                send_malformed(&address, &fuzz_garbage::malformed(&mut rng), &mut tally).await;
            }
            _ => {
                tally.request_count += 1;
                tally.left_count += 1;
                // The client leaves before the response. An error while it writes does not matter.
                let _ = connect(&address).await.write_all(&fuzz_garbage::left_alone(&mut rng)).await;
            }
        }
    }
    tally
}

fn pipeline(rng: &mut StdRng) -> Vec<Request> {
    let mut requests: Vec<Request> = Vec::new();
    let len = rng.random_range(1..=PIPELINE_LEN_MAX);
    while requests.len() < len && requests.last().is_none_or(|request| !request.is_last) {
        requests.push(match rng.random_range(0..100) {
            0..8 => fuzz_wallets::command(rng),
            8..12 => fuzz_wallets::read(rng),
            _ => fuzz_requests::well_formed(rng),
        });
    }
    requests
}

async fn connect(address: &str) -> TcpStream {
    timeout(RESPONSE_WAIT, TcpStream::connect(address)).await.unwrap().unwrap()
}

/// Sends all requests, and checks the responses. Returns whether the connection can be used again.
async fn exchange(connection: &mut TcpStream, requests: &[Request], tally: &mut Tally) -> bool {
    let bytes: Vec<u8> = requests.iter().flat_map(|request| &request.bytes).copied().collect();
    let (reader, mut writer) = connection.split();
    let mut reader = BufReader::new(reader);
    // Write and read at the same time: with full buffers, neither side would go on. The server may close the connection in the
    // middle of a body.
    let (_, closed) = tokio::join!(writer.write_all(&bytes), async {
        for request in requests {
            match timeout(RESPONSE_WAIT, read_response(&mut reader, request.is_head))
                .await
                .expect("no response in time")
            {
                Some(response) => {
                    check(request, &response, tally);
                    if response.closes {
                        assert!(request.is_last, "closed after {:?}", String::from_utf8_lossy(&request.bytes));
                        return true;
                    }
                }
                // The server closed the connection while the client was still sending a body. Then the response may be lost.
                None => {
                    assert!(request.is_last, "no response to {:?}", String::from_utf8_lossy(&request.bytes));
                    tally.cut_count += 1;
                    return true;
                }
            }
        }
        requests.last().is_some_and(|request| request.is_last)
    });
    !closed
}

fn check(request: &Request, response: &Response, tally: &mut Tally) {
    let shown = || {
        let sent: String = String::from_utf8_lossy(&request.bytes).chars().take(2_000).collect();
        format!("{} {} to {sent}", response.status, String::from_utf8_lossy(&response.body))
    };
    *tally.statuses.entry(response.status).or_default() += 1;
    assert!((200..500).contains(&response.status), "{}", shown());
    let body =
        || serde_json::from_slice::<Value>(&response.body).unwrap_or_else(|error| panic!("{error}: {}", shown()));
    if request.expected == Expected::Wallet && response.status < 300 && !request.is_head {
        let body = body();
        // A new wallet and a read have no event. A repeated command has the same event again.
        tally.events.extend(body["event_id"].as_str().map(str::to_owned));
        return;
    }
    if response.status == 201 {
        let (is_booked, ride) = (body()["message"] == BOOKED, &body()["ride"]);
        if is_booked {
            assert_eq!(request.expected, Expected::Response, "{}", shown());
            // A replayed response names the same ride again.
            tally.booked.insert(ride["id"].as_i64().unwrap());
            return;
        }
        let distance_mm = ride["distance_mm"].as_i64().unwrap();
        tally.ride_count += 1;
        tally.distance_mm += distance_mm;
        assert!(matches!(request.expected, Expected::Response) || request.expected == Expected::Ride(distance_mm));
        return;
    }
    assert!(matches!(request.expected, Expected::Response | Expected::Wallet), "{}", shown());
    if response.status >= 400 && !request.is_head {
        let body = body();
        // The errors of wallets have four fields more.
        let field_count = if request.expected == Expected::Wallet && body["success"] == false { 6 } else { 2 };
        let is_shaped = body.as_object().is_some_and(|fields| fields.len() == field_count);
        assert!(is_shaped && body["error"].is_string() && body["code"].is_string(), "{}", shown());
    }
}

/// Reads the next response; `None` if the connection ended before it.
async fn read_response(reader: &mut (impl AsyncBufReadExt + Unpin), is_head: bool) -> Option<Response> {
    loop {
        let mut response = Response { status: 0, closes: false, body: Vec::new() };
        let mut line = String::new();
        reader.read_line(&mut line).await.ok().filter(|len| *len > 0)?;
        response.status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok()).expect(&line);
        let mut body_len = 0;
        loop {
            line.clear();
            reader.read_line(&mut line).await.ok().filter(|len| *len > 0)?;
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            } else if let Some(len) = header.strip_prefix("content-length: ") {
                body_len = len.parse().unwrap();
            }
            response.closes |= header == "connection: close";
        }
        // 100 Continue precedes the response.
        if response.status >= 200 {
            if !is_head {
                response.body = vec![0; body_len];
                reader.read_exact(&mut response.body).await.ok()?;
            }
            return Some(response);
        }
    }
}

/// Sends malformed bytes, and reads until the server closes the connection. It may respond, but not with a 5xx or a ride.
async fn send_malformed(address: &str, bytes: &[u8], tally: &mut Tally) {
    let mut connection = connect(address).await;
    let mut responses = Vec::new();
    let (mut reader, mut writer) = connection.split();
    let both = async {
        tokio::join!(
            async {
                let _ = writer.write_all(bytes).await;
                let _ = writer.shutdown().await;
            },
            reader.read_to_end(&mut responses)
        )
    };
    // An error means that the server closed the connection before it had read everything.
    let _ = timeout(RESPONSE_WAIT, both).await.expect("the connection hangs");
    let responses = String::from_utf8_lossy(&responses);
    for response in responses.split("HTTP/1.").skip(1) {
        let status: u16 = response.get(2..5).and_then(|status| status.parse().ok()).expect(response);
        *tally.statuses.entry(status).or_default() += 1;
        assert!(status < 500 && status != 201, "{responses} to {:?}", String::from_utf8_lossy(bytes));
    }
}
