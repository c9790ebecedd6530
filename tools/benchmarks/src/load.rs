//! The load of the drains: records are staged as the api stages them, published by the streamer, and folded by consumers.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bench::Bench;
use crate::process::{Ended, Running};

/// Rows per transaction.
const CHUNK_LEN: i64 = 10_000;

/// Connections that stage at once.
const STAGING_CONNECTIONS: usize = 2;

/// How long a process may take until it responds.
const READY_WAIT: Duration = Duration::from_secs(20);

/// The staged records.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Staged {
    /// The number of records.
    pub count: i64,
    /// The sum that every consumer must reach.
    pub distance_mm: i64,
}

/// Stages `count` records of rides, in transactions of 10,000, and waits until they are on disk.
///
/// # Errors
/// Postgres is away, or rows are missing.
pub(crate) async fn stage(bench: &Bench, count: i64) -> Result<Staged> {
    let next = Cell::new(1);
    let workers = (0..STAGING_CONNECTIONS).map(|_| stage_chunks(bench, &next, count));
    futures_util::future::try_join_all(workers).await?;
    let row = bench
        .client
        .query_one(
            "-- benchmarks::stage
             SELECT count(*), sum((data->>'distance_mm')::bigint)::bigint FROM staged_log_records",
            &[],
        )
        .await
        .context("adding up what was staged")?;
    // Not before this query: the first read of a row marks it as committed, which writes to its page.
    bench.checkpoint().await?;
    let staged = Staged { count: row.get(0), distance_mm: row.get(1) };
    ensure!(staged.count == count, "{} records are staged, and {count} were meant to be", staged.count);
    Ok(staged)
}

async fn stage_chunks(bench: &Bench, next: &Cell<i64>, count: i64) -> Result<()> {
    let client = bench.connect().await?;
    loop {
        let first = next.get();
        let last = (first + CHUNK_LEN - 1).min(count);
        if first > count {
            return Ok(());
        }
        next.set(last + 1);
        let statement = "-- benchmarks::stage_chunks
             INSERT INTO staged_log_records (object, action, data)
             SELECT 'ride', 'create', format('{\"id\":%s,\"distance_mm\":%s}', id, 5000 + id * 7919 % 995000)::json
             FROM generate_series($1::bigint, $2::bigint) AS id";
        client.execute(statement, &[&first, &last]).await.context("staging records")?;
    }
}

/// Runs `streamer --drain` and checks that the stream has every staged record. With faults, it may have more entries.
///
/// # Errors
/// It failed, or entries are missing.
pub(crate) async fn drain_streamer(bench: &Bench, args: &[&str], count: i64) -> Result<Ended> {
    let args = [&["--drain"], args].concat();
    let ended = bench.start_process("streamer", &args)?.succeed().await?;
    let len = bench.stream_len().await?;
    let is_complete = if args.len() == 1 { len == count } else { len >= count };
    ensure!(is_complete, "the stream has {len} entries, and {count} records were staged");
    Ok(ended)
}

/// Runs `consumer NAME --drain` under a fresh name, checks its sum, and forgets it.
///
/// # Errors
/// It failed, or its sum is not SQL's.
pub(crate) async fn drain_consumer(bench: &Bench, staged: Staged) -> Result<Ended> {
    let ended = bench.start_process("consumer", &["drained", "--drain"])?.succeed().await?;
    check_consumer(bench, "drained", staged).await?;
    Ok(ended)
}

/// Compares the state of a consumer with what was staged, and unregisters it.
///
/// # Errors
/// They differ.
pub(crate) async fn check_consumer(bench: &Bench, name: &str, staged: Staged) -> Result<()> {
    let query = "-- benchmarks::check_consumer
                 SELECT ride_count, total_distance_mm FROM consumer_states WHERE name = $1";
    let row = bench.client.query_one(query, &[&name]).await.context("reading a consumer's state")?;
    let (ride_count, distance_mm): (i64, i64) = (row.get(0), row.get(1));
    ensure!(
        (ride_count, distance_mm) == (staged.count, staged.distance_mm),
        "{name} has {ride_count} rides and {distance_mm} mm, and {} with {} mm were staged",
        staged.count,
        staged.distance_mm
    );
    // In this order: the first statement lets Postgres refuse the name.
    for table in ["checkpoints", "unregistered_consumers"] {
        let forget = format!("-- benchmarks::check_consumer\nDELETE FROM {table} WHERE name = $1");
        bench.client.execute(&forget, &[&name]).await.context("forgetting a consumer")?;
    }
    Ok(())
}

/// A running api.
pub(crate) struct Api {
    /// Its process.
    pub process: Running,
    /// Its port.
    pub port: u16,
}

/// Starts the api and waits until it is ready.
///
/// # Errors
/// The api does not become ready.
pub(crate) async fn start_api(bench: &Bench, args: &[&str]) -> Result<Api> {
    let port = free_port()?;
    let mut process = bench.start_process("api", &[&["--api-port", &port.to_string()], args].concat())?;
    let url = format!("http://127.0.0.1:{port}/healthz");
    let deadline = tokio::time::Instant::now() + READY_WAIT;
    loop {
        process.check()?;
        match reqwest::get(&url).await {
            Ok(answer) if answer.status().is_success() => return Ok(Api { process, port }),
            _ => ensure!(tokio::time::Instant::now() < deadline, "the api does not become ready"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A port that is free at the moment.
///
/// # Errors
/// There is none.
pub(crate) fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}
