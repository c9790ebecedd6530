//! `booked`: booked rides per second, each charged by the process payments, beside guests' rides of the same api; and replayed
//! responses per second.

use anyhow::{Context, Result, ensure};

use crate::bench::Bench;
use crate::cases::api::check_rides;
use crate::load::{free_port, start_api};
use crate::report::{Figures, Row};
use crate::sample::Samples;
use crate::wrk::{Answers, Pace, Wrk};

/// Connections under load.
const CONNECTIONS: u32 = 64;

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    let wrk = Wrk::new(bench)?;
    bench.client.batch_execute(launcher::SEED).await.context("applying the seed")?;
    let [mut guests, mut booked, mut replayed, mut p50_ms, mut p99_ms] = [const { Samples(Vec::new()) }; 5];
    let runs = bench.config.runs;
    bench.progress.expect(runs * 3);
    for round in 1..=runs {
        bench.progress.step(&format!("round {round}: guests"));
        guests.push(load(bench, &wrk, Pace::Max).await?.rate());
        bench.progress.step(&format!("round {round}: booked rides"));
        let answers = load(bench, &wrk, Pace::Booked).await?;
        booked.push(answers.rate());
        p50_ms.push(answers.p50_ms);
        p99_ms.push(answers.p99_ms);
        bench.progress.step(&format!("round {round}: answers given again"));
        replayed.push(load(bench, &wrk, Pace::Replayed).await?.rate());
    }
    Ok(Figures::of(vec![
        Row::new("booked rides/s, 64 connections", &booked).beside("guests' rides/s", &guests),
        Row::new("p50, ms, booked", &p50_ms),
        Row::new("p99, ms, booked", &p99_ms),
        Row::new("answers given again/s, 64 connections", &replayed).beside("guests' rides/s", &guests),
    ])
    .remark(
        "A booked ride is a claim, three transactions and a charge by HTTP at a server on the same cores, which syncs each \
         to disk. The original's 1,563 rides/s (another sitting) were guests' rides.",
    ))
}

/// Posts to a fresh api on fresh tables, with a fresh payment processor, and checks the tables.
async fn load(bench: &Bench, wrk: &Wrk, pace: Pace) -> Result<Answers> {
    bench.fresh_tables().await?;
    let journal = bench.folder.join("payments");
    if journal.exists() {
        std::fs::remove_dir_all(&journal).context("emptying the journal")?;
    }
    let (port, journal) = (free_port()?.to_string(), journal.display().to_string());
    let payments = bench.start_process("payments", &["--payments-port", &port, "--data", &journal])?;
    let base = format!("http://127.0.0.1:{port}");
    let api = start_api(bench, &["--stripe-api-base", &base, "--stripe-api-key", "sk_test_bench"]).await?;
    let answers = wrk.post(api.port, CONNECTIONS, bench.config.seconds, pace).await?;
    api.process.stop().await?;
    payments.stop().await?;
    match pace {
        Pace::Booked => {
            let charged = bench.number("SELECT count(*) FROM bookings WHERE stripe_charge_id IS NOT NULL").await?;
            ensure!(charged >= answers.accepted_count() as i64, "{charged} rides are charged, {answers:?}");
        }
        Pace::Replayed => {
            let ride_count = bench.number("SELECT count(*) FROM rides").await?;
            ensure!(ride_count == 1, "{ride_count} rides are booked with one key");
        }
        _ => check_rides(bench, answers.accepted_count(), CONNECTIONS).await?,
    }
    Ok(answers)
}
