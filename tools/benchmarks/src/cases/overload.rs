//! `overload`: clients send far more requests than the api lets wait. It must serve as many as it can, and refuse the rest with
//! 503.
//!
//! Many connections alone hardly overload the api, because it reads requests no faster than it writes rides. So in a second load
//! Postgres stalls for a moment every second, and requests pile up.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;

use super::api::check_rides;
use crate::bench::Bench;
use crate::load::start_api;
use crate::report::{Figures, Row, Wanted};
use crate::sample::Samples;
use crate::wrk::{Answers, Pace, Wrk};

/// Connections that the api serves easily.
const FEW: u32 = 64;

/// More connections than requests may wait (2000 in the queue and 1000 in hand), and fewer than the api accepts.
const MANY: u32 = 4000;

/// How long Postgres stalls, and how long it works between two stalls.
const STALL: Duration = Duration::from_millis(250);
const WORK: Duration = Duration::from_millis(750);

/// The state of Postgres during a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Postgres {
    Works,
    Stalls,
}

/// The figures of one load over all rounds.
#[derive(Default)]
struct Load {
    few: Samples,
    many: Samples,
    refused_percent: Samples,
    other: Samples,
    p99_ms: Samples,
}

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    let wrk = Wrk::new(bench)?;
    let runs = bench.config.runs.min(3);
    bench.progress.expect(runs * 4);
    let mut rows = Vec::new();
    for postgres in [Postgres::Works, Postgres::Stalls] {
        let when = match postgres {
            Postgres::Works => "4000 connections",
            Postgres::Stalls => "4000 connections, Postgres stalls",
        };
        let mut load = Load::default();
        for round in 1..=runs {
            bench.progress.step(&format!("round {round}: {FEW} connections, Postgres {postgres:?}"));
            load.few.push(created_rate(&post(bench, &wrk, FEW, postgres).await?));
            bench.progress.step(&format!("round {round}: {MANY} connections, Postgres {postgres:?}"));
            let answers = post(bench, &wrk, MANY, postgres).await?;
            load.many.push(created_rate(&answers));
            load.refused_percent.push(100.0 * answers.refused_count as f64 / answers.request_count as f64);
            load.other.push((answers.other_count + answers.socket_error_count) as f64);
            load.p99_ms.push(answers.p99_ms);
        }
        rows.push(Row::new(&format!("rides/s (201 only), {when}"), &load.many).beside("64 connections", &load.few));
        rows.push(Row::new(&format!("503 with Retry-After, % of answers, {when}"), &load.refused_percent));
        rows.push(Row::new(&format!("answered otherwise, {when}"), &load.other).wanted(Wanted::AtMost(0.0)));
        rows.push(Row::new(&format!("p99 of all answers, ms, {when}"), &load.p99_ms));
    }
    Ok(Figures::of(rows)
        .remark("wrk counts every status here, on both sides, and so gets less out of the api than in the case api.")
        .remark(format!(
            "\"Postgres stalls\": table rides is locked for {STALL:?} of every second. Whoever is refused asks again at \
             once, which no good client does."
        )))
}

fn created_rate(answers: &Answers) -> f64 {
    answers.created_count as f64 / answers.seconds
}

async fn post(bench: &Bench, wrk: &Wrk, connections: u32, postgres: Postgres) -> Result<Answers> {
    bench.fresh_tables().await?;
    let api = start_api(bench, &[]).await?;
    let mut locker = bench.connect().await?;
    let posting = wrk.post(api.port, connections, bench.config.seconds, Pace::MaxCounted);
    let answers = tokio::select! {
        answers = posting => answers?,
        error = stall_again_and_again(&mut locker), if postgres == Postgres::Stalls => return Err(error),
    };
    // This ends the session, which releases the lock.
    drop(locker);
    api.process.stop().await?;
    check_rides(bench, answers.created_count, connections).await?;
    ensure!(answers.created_count > 0, "not one ride was accepted");
    Ok(answers)
}

/// Stalls Postgres again and again. Returns only after an error.
async fn stall_again_and_again(client: &mut Client) -> anyhow::Error {
    loop {
        tokio::time::sleep(WORK).await;
        if let Err(error) = stall(client).await {
            return error;
        }
    }
}

async fn stall(client: &mut Client) -> Result<()> {
    let tx = client.transaction().await.context("beginning")?;
    tx.batch_execute("LOCK TABLE rides IN EXCLUSIVE MODE").await.context("locking the rides")?;
    tokio::time::sleep(STALL).await;
    tx.rollback().await.context("unlocking the rides")
}
