//! Commands per second: over many wallets, on one wallet, between two wallets, and beside a transaction that is held open.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::service::{Beside, Service, fill, ids};
use super::{CONNECTIONS, EVENT_COUNT, WALLET_COUNT, naive};
use crate::bench::Bench;
use crate::cases::held::{hold_snapshot, hold_write};
use crate::report::{Row, Wanted};
use crate::sample::Samples;
use crate::wrk::{About, Answers, Wrk};

/// How long the commands beside a held transaction go on: what a row that is updated costs shows only with time.
const HOLD: Duration = Duration::from_secs(60);

/// Measures commands beside pgbench.
///
/// # Errors
/// A process failed, or the tables do not agree with the responses.
pub(super) async fn measure(bench: &Bench, wrk: &Wrk) -> Result<Vec<Row>> {
    let (many_ids, one_id) = (ids(bench, 1, WALLET_COUNT).await?, ids(bench, 1, 1).await?);
    let seconds = bench.config.seconds;
    let [mut naive_many, mut naive_one, mut naive_transfers] = [const { Samples(Vec::new()) }; 3];
    let [mut many, mut one, mut transfers, mut whole] = [const { Samples(Vec::new()) }; 4];
    let [mut p50_ms, mut p99_ms, mut one_p99_ms] = [const { Samples(Vec::new()) }; 3];
    bench.progress.expect(bench.config.runs * 7);
    for round in 1..=bench.config.runs {
        let step = |what: &str| bench.progress.step(&format!("round {round}: {what}"));
        step("pgbench, 10,000 wallets");
        naive_many.push(naive::credits_per_s(bench, WALLET_COUNT).await?);
        step("commands, 10,000 wallets");
        let answers = load(bench, wrk, About::Commands, &many_ids, Beside::Nothing, seconds).await?;
        many.push(answers.rate());
        p50_ms.push(answers.p50_ms);
        p99_ms.push(answers.p99_ms);
        step("pgbench, one wallet");
        naive_one.push(naive::credits_per_s(bench, 1).await?);
        step("commands, one wallet");
        let answers = load(bench, wrk, About::Commands, &one_id, Beside::Nothing, seconds).await?;
        one.push(answers.rate());
        one_p99_ms.push(answers.p99_ms);
        step("pgbench, transfers");
        naive_transfers.push(naive::transfers_per_s(bench).await?);
        step("transfers");
        transfers.push(load(bench, wrk, About::Transfers, &many_ids, Beside::Nothing, seconds).await?.rate());
        step("commands, 10,000 wallets, streamer and consumer run");
        whole.push(load(bench, wrk, About::Commands, &many_ids, Beside::Pipeline, seconds).await?.rate());
    }
    let at_least = Wanted::RatioAtLeast;
    Ok(vec![
        Row::new("commands/s, 10,000 wallets, 64 connections", &many)
            .beside("pgbench, one transaction a command", &naive_many)
            .wanted(at_least(3.0)),
        Row::new("p50, ms", &p50_ms),
        Row::new("p99, ms", &p99_ms).wanted(Wanted::AtMost(15.0)),
        Row::new("commands/s, one wallet", &one).beside("pgbench on one wallet", &naive_one).wanted(at_least(8.0)),
        Row::new("commands/s, one wallet", &one).beside("10,000 wallets", &many).wanted(at_least(0.9)),
        Row::new("p99, ms, one wallet", &one_p99_ms),
        Row::new("transfers/s, 10,000 wallets", &transfers)
            .beside("pgbench, two wallets a transaction", &naive_transfers)
            .wanted(at_least(3.0)),
        Row::new("commands/s, streamer and consumer run", &whole).beside("without them", &many),
    ])
}

/// Measures commands on one wallet for a minute, with and without a transaction that is held open.
///
/// # Errors
/// As for [`measure`].
pub(super) async fn measure_held(bench: &Bench, wrk: &Wrk) -> Result<Vec<Row>> {
    let id = ids(bench, 1, 1).await?;
    let seconds = if bench.config.quick { 1 } else { HOLD.as_secs() };
    let [mut free, mut held] = [const { Samples(Vec::new()) }; 2];
    let runs = bench.config.runs.min(3);
    bench.progress.expect(runs * 2);
    for round in 1..=runs {
        bench.progress.step(&format!("round {round}: one wallet, nothing is held"));
        free.push(load(bench, wrk, About::Commands, &id, Beside::Nothing, seconds).await?.rate());
        bench.progress.step(&format!("round {round}: one wallet, two transactions are held open"));
        held.push(load_held(bench, wrk, &id, seconds).await?.rate());
    }
    Ok(vec![
        Row::new("commands/s, one wallet for a minute, held", &held)
            .beside("nothing held", &free)
            .wanted(Wanted::RatioAtLeast(0.9)),
    ])
}

/// Sends commands to a fresh api on fresh wallets, and checks the tables.
async fn load(bench: &Bench, wrk: &Wrk, about: About, ids: &Path, beside: Beside, seconds: u64) -> Result<Answers> {
    fill(bench, WALLET_COUNT, EVENT_COUNT).await?;
    let service = Service::start(bench, WALLET_COUNT, beside).await?;
    let answers = wrk.ask(service.port, CONNECTIONS, seconds, about, ids).await?;
    service.stop().await?;
    check(bench, about, &answers).await?;
    Ok(answers)
}

/// As [`load`], beside one transaction that has staged a record and one that keeps its snapshot.
async fn load_held(bench: &Bench, wrk: &Wrk, ids: &Path, seconds: u64) -> Result<Answers> {
    fill(bench, WALLET_COUNT, EVENT_COUNT).await?;
    let service = Service::start(bench, WALLET_COUNT, Beside::Nothing).await?;
    let (writer, reader) = (hold_write(bench).await?, hold_snapshot(bench).await?);
    let answers = wrk.ask(service.port, CONNECTIONS, seconds, About::Commands, ids).await?;
    // Both transactions are still open. If the server had ended them, these statements would fail.
    writer.batch_execute("ROLLBACK").await?;
    reader.batch_execute("SELECT count(*) FROM log_batches; ROLLBACK").await?;
    service.stop().await?;
    check(bench, About::Commands, &answers).await?;
    Ok(answers)
}

/// Compares the tables with the responses: every confirmed command is one event, or two of a transfer, each with its record, and
/// the versions of every wallet are contiguous. wrk leaves during its last requests, which the api writes and wrk does not count.
async fn check(bench: &Bench, about: About, answers: &Answers) -> Result<()> {
    ensure!(answers.error_count == 0, "{} of {} commands failed", answers.error_count, answers.request_count);
    let commanded = bench
        .number("-- benchmarks::check_commands\nSELECT count(*) FROM wallet_events WHERE idempotency_key IS NOT NULL")
        .await?;
    let uncounted = commanded - answers.accepted_count() as i64;
    ensure!(
        (0..=i64::from(CONNECTIONS)).contains(&uncounted),
        "{commanded} commands are written, and {} were confirmed",
        answers.accepted_count()
    );
    let events_each = if matches!(about, About::Transfers) { 2 } else { 1 };
    let (events, staged) = (
        bench.number("SELECT count(*) FROM wallet_events WHERE accepted").await? - WALLET_COUNT * EVENT_COUNT,
        bench.number("SELECT count(*) FROM staged_log_records").await?,
    );
    ensure!(
        (events, staged) == (events_each * commanded, events_each * commanded),
        "{commanded} commands are written, with {events} events and {staged} records"
    );
    let torn = bench
        .number(
            "-- benchmarks::check_versions
             SELECT count(*) FROM (SELECT FROM wallet_events WHERE accepted GROUP BY wallet_id
                                   HAVING count(*) <> max(version)) AS torn",
        )
        .await?;
    ensure!(torn == 0, "the versions of {torn} wallets have gaps");
    Ok(())
}
