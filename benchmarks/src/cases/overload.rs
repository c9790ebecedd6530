//! `overload`: far more is offered than the api lets wait. It must go on serving what it can, and refuse the rest with 503.

use anyhow::{Result, ensure};

use super::api::check_rides;
use crate::bench::Bench;
use crate::load::start_api;
use crate::report::{Figures, Row, Wanted};
use crate::sample::Samples;
use crate::wrk::{Answers, Pace, Wrk};

/// Connections that the api serves with ease.
const FEW: u32 = 64;

/// More than may wait (2000 in the queue and 1000 in hand), and still fewer than the api takes.
const MANY: u32 = 4000;

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    let wrk = Wrk::new(bench)?;
    let runs = bench.config.runs.min(3);
    bench.progress.expect(runs * 2);
    let [mut few, mut many, mut share, mut other, mut p99_ms] = [const { Samples(Vec::new()) }; 5];
    for round in 1..=runs {
        bench.progress.step(&format!("round {round}: {FEW} connections"));
        let answers = load(bench, &wrk, FEW).await?;
        few.push(answers.created_count as f64 / answers.seconds);
        bench.progress.step(&format!("round {round}: {MANY} connections"));
        let answers = load(bench, &wrk, MANY).await?;
        many.push(answers.created_count as f64 / answers.seconds);
        share.push(100.0 * answers.refused_count as f64 / answers.request_count as f64);
        other.push((answers.other_count + answers.socket_error_count) as f64);
        p99_ms.push(answers.p99_ms);
    }
    Ok(Figures::of(vec![
        Row::new("rides/s (201 only), 4000 connections", &many).beside("64 connections", &few),
        Row::new("answered with 503 and Retry-After, %", &share),
        Row::new("answered otherwise, or not at all", &other).wanted(Wanted::AtMost(0.0)),
        Row::new("p99 of all answers, ms", &p99_ms),
    ])
    .remark("wrk counts every status here, on both sides, and so gets less out of the api than in the case api."))
}

async fn load(bench: &Bench, wrk: &Wrk, connections: u32) -> Result<Answers> {
    bench.fresh_tables().await?;
    let api = start_api(bench).await?;
    let answers = wrk.post(api.port, connections, bench.config.seconds, Pace::MaxCounted).await?;
    api.process.stop().await?;
    check_rides(bench, answers.created_count, connections).await?;
    ensure!(answers.created_count > 0, "not one ride was accepted");
    Ok(answers)
}
