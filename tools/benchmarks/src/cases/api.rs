//! `api`: rides per second, beside Postgres without group commit and HTTP without Postgres.

use anyhow::{Result, ensure};

use crate::bench::Bench;
use crate::load::{free_port, start_api};
use crate::pgbench::{self, ONE_STATEMENT, TWO_INSERTS};
use crate::report::{Figures, Row, Wanted};
use crate::sample::Samples;
use crate::wrk::{Answers, Pace, Wrk};
use crate::{nginx, tools};

/// Connections under load.
const CONNECTIONS: u32 = 64;

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    let wrk = Wrk::new(bench)?;
    tools::pgbench(&bench.binaries.folder)?;
    let nginx_port = free_port()?;
    let nginx = nginx::start(bench, nginx_port).await?;
    let (runs, seconds) = (bench.config.runs, bench.config.seconds);
    bench.progress.expect(runs * 5);
    let [mut two_inserts, mut one_statement_ms, mut one_statement, mut http] = [const { Samples(Vec::new()) }; 4];
    let [mut rate, mut p50_ms, mut p99_ms, mut single_rate, mut single_ms] = [const { Samples(Vec::new()) }; 5];
    let [mut http_p99_ms, mut errors] = [const { Samples(Vec::new()) }; 2];
    for round in 1..=runs {
        bench.progress.step(&format!("round {round}: pgbench, two inserts, {CONNECTIONS} clients"));
        two_inserts.push(pgbench::run(bench, TWO_INSERTS, CONNECTIONS).await?.rate);
        bench.progress.step(&format!("round {round}: nginx, {CONNECTIONS} connections"));
        let answers = wrk.post(nginx_port, CONNECTIONS, seconds, Pace::Max).await?;
        http.push(answers.rate());
        http_p99_ms.push(answers.p99_ms);
        bench.progress.step(&format!("round {round}: api, {CONNECTIONS} connections"));
        let answers = load(bench, &wrk, CONNECTIONS).await?;
        rate.push(answers.rate());
        p50_ms.push(answers.p50_ms);
        p99_ms.push(answers.p99_ms);
        errors.push((answers.error_count + answers.socket_error_count) as f64);
        bench.progress.step(&format!("round {round}: pgbench, one statement, 1 client"));
        let outcome = pgbench::run(bench, ONE_STATEMENT, 1).await?;
        one_statement.push(outcome.rate);
        one_statement_ms.push(outcome.latency_ms);
        bench.progress.step(&format!("round {round}: api, 1 connection"));
        let answers = load(bench, &wrk, 1).await?;
        single_rate.push(answers.rate());
        single_ms.push(answers.mean_ms);
    }
    drop(nginx);
    let at_64 = |figure: &str| format!("{figure}, 64 connections");
    let (pgbench_64, pgbench_1) = ("pgbench, two inserts, 64 clients", "pgbench, one statement, 1 client");
    Ok(Figures::of(vec![
        Row::new(&at_64("rides/s (201 only)"), &rate)
            .beside(pgbench_64, &two_inserts)
            .wanted(Wanted::RatioAtLeast(4.0)),
        Row::new(&at_64("rides/s (201 only)"), &rate)
            .beside("nginx, 1 worker", &http)
            .wanted(Wanted::RatioAtLeast(0.4)),
        Row::new(&at_64("p50, ms"), &p50_ms),
        Row::new(&at_64("p99, ms"), &p99_ms).beside("nginx p99", &http_p99_ms).wanted(Wanted::AtMost(10.0)),
        Row::new(&at_64("not answered with 201"), &errors).wanted(Wanted::AtMost(0.0)),
        Row::new("mean latency, ms, 1 connection", &single_ms)
            .beside(pgbench_1, &one_statement_ms)
            .wanted(Wanted::RatioAtMost(1.5)),
        Row::new("rides/s, 1 connection", &single_rate).beside(pgbench_1, &one_statement),
    ]))
}

/// Posts rides to a fresh api on fresh tables, and checks that every confirmed ride is there with its record (I1).
async fn load(bench: &Bench, wrk: &Wrk, connections: u32) -> Result<Answers> {
    bench.fresh_tables().await?;
    let api = start_api(bench, &[]).await?;
    let answers = wrk.post(api.port, connections, bench.config.seconds, Pace::Max).await?;
    // The api finishes its work in hand.
    api.process.stop().await?;
    check_rides(bench, answers.accepted_count(), connections).await?;
    Ok(answers)
}

/// Compares the tables with the responses. wrk leaves during its last requests, which the api writes and wrk does not count.
pub(crate) async fn check_rides(bench: &Bench, accepted_count: u64, connections: u32) -> Result<()> {
    let ride_count = bench.number("SELECT count(*) FROM rides").await?;
    let staged_count = bench.number("SELECT count(*) FROM staged_log_records").await?;
    ensure!(ride_count == staged_count, "{ride_count} rides are written, and {staged_count} records staged");
    let uncounted = ride_count - accepted_count as i64;
    ensure!(
        (0..=i64::from(connections)).contains(&uncounted),
        "{ride_count} rides are written, and {accepted_count} were confirmed"
    );
    Ok(())
}
