//! Reads of balances per second, out of Redis, beside nginx with a text of its own.

use anyhow::{Context, Result, ensure};

use super::service::{Beside, Service, fill, ids};
use super::{CONNECTIONS, EVENT_COUNT, WALLET_COUNT};
use crate::bench::Bench;
use crate::load::free_port;
use crate::nginx;
use crate::report::{Row, Wanted};
use crate::sample::Samples;
use crate::wrk::{About, Wrk};

/// The endpoint that is read.
const BALANCE: About = About::Read("balance");

/// Measures reads of balances beside nginx.
///
/// # Errors
/// A process failed, or a response was an error.
pub(super) async fn measure(bench: &Bench, wrk: &Wrk) -> Result<Vec<Row>> {
    let ids = ids(bench, 1, WALLET_COUNT).await?;
    fill(bench, WALLET_COUNT, EVENT_COUNT).await?;
    let service = Service::start(bench, WALLET_COUNT, Beside::Nothing).await?;
    let nginx_port = free_port()?;
    let nginx = nginx::start(bench, nginx_port).await?;
    let [mut rate, mut p99_ms, mut http, mut http_p99_ms] = [const { Samples(Vec::new()) }; 4];
    bench.progress.expect(bench.config.runs * 2);
    for round in 1..=bench.config.runs {
        bench.progress.step(&format!("round {round}: nginx, {CONNECTIONS} connections"));
        let answers = wrk.ask(nginx_port, CONNECTIONS, bench.config.seconds, BALANCE, &ids).await?;
        http.push(answers.rate());
        http_p99_ms.push(answers.p99_ms);
        bench.progress.step(&format!("round {round}: balances, {CONNECTIONS} connections"));
        let answers = wrk.ask(service.port, CONNECTIONS, bench.config.seconds, BALANCE, &ids).await?;
        ensure!(answers.error_count == 0, "{} reads failed", answers.error_count);
        rate.push(answers.rate());
        p99_ms.push(answers.p99_ms);
    }
    let id = std::fs::read_to_string(&ids).context("reading the ids")?;
    let id = id.lines().next().context("there are ids")?;
    let answer = reqwest::get(format!("http://127.0.0.1:{}/wallet/{id}/balance", service.port)).await?;
    let source = answer.headers().get("read-from").cloned();
    ensure!(source.as_ref().is_some_and(|source| source == "redis"), "balances are read from {source:?}");
    service.stop().await?;
    drop(nginx);
    Ok(vec![
        Row::new("balances/s, 64 connections", &rate)
            .beside("nginx, 1 worker", &http)
            .wanted(Wanted::RatioAtLeast(0.35)),
        Row::new("p99, ms, balances", &p99_ms).beside("nginx p99", &http_p99_ms).wanted(Wanted::AtMost(4.0)),
    ])
}
