//! The read model built anew, from an empty Redis, while a client reads.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::shutdown::CancellationToken;

use super::EVENT_COUNT;
use super::service::{Pipeline, fill, ids};
use crate::bench::Bench;
use crate::load::start_api;
use crate::report::{Row, Wanted};
use crate::sample::Samples;

/// Wallets of the model.
const WALLET_COUNT: i64 = 100_000;

/// Measures how long the consumer takes, from its start until Redis has every document.
///
/// # Errors
/// A process failed, the model was not built in time, or a read failed meanwhile.
pub(super) async fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let wallet_count = if bench.config.quick { WALLET_COUNT / 20 } else { WALLET_COUNT };
    fill(bench, wallet_count, EVENT_COUNT).await?;
    let path = ids(bench, 1, 100).await?;
    let ids: Vec<String> = std::fs::read_to_string(path)?.lines().map(str::to_owned).collect();
    let api = start_api(bench, &[]).await?;
    let [mut seconds, mut reads, mut slowest_ms] = [const { Samples(Vec::new()) }; 3];
    bench.progress.expect(bench.config.runs);
    for round in 1..=bench.config.runs {
        bench.progress.step(&format!("round {round}: {wallet_count} wallets from an empty Redis"));
        // The consumer finds no registration and no mark.
        bench.forget_batches().await?;
        bench.fresh_redis().await?;
        let done = CancellationToken::new();
        let reader = tokio::spawn(read_on(api.port, ids.clone(), done.clone()));
        let began_at = Instant::now();
        let mut pipeline = Pipeline::start(bench)?;
        pipeline.wait_until_built(bench, wallet_count).await?;
        let elapsed = began_at.elapsed();
        done.cancel();
        let read = reader.await.context("reading")??;
        pipeline.stop().await?;
        seconds.push(elapsed.as_secs_f64());
        reads.push(read.count as f64 / elapsed.as_secs_f64());
        slowest_ms.push(read.slowest.as_secs_f64() * 1e3);
    }
    api.process.stop().await?;
    Ok(vec![
        Row::new("the model rebuilt, 100,000 wallets with 20 transactions each, s", &seconds)
            .wanted(Wanted::AtMost(10.0)),
        Row::new("balances/s of one client meanwhile", &reads),
        Row::new("slowest of them, ms", &slowest_ms),
    ])
}

/// The reads of one client.
struct Read {
    count: u64,
    slowest: Duration,
}

/// Reads one balance after another until `done`.
async fn read_on(port: u16, ids: Vec<String>, done: CancellationToken) -> Result<Read> {
    let client = reqwest::Client::new();
    let mut read = Read { count: 0, slowest: Duration::ZERO };
    for id in ids.iter().cycle() {
        if done.is_cancelled() {
            break;
        }
        let began_at = Instant::now();
        let answer = client.get(format!("http://127.0.0.1:{port}/wallet/{id}/balance")).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success() && text.contains("20000.00"), "a read during the rebuild got {status}: {text}");
        read.count += 1;
        read.slowest = read.slowest.max(began_at.elapsed());
    }
    Ok(read)
}
