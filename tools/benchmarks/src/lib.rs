//! Measures the pipeline beside the limits of Postgres, Redis and HTTP, in one sitting and on the same private servers:
//! round 1 limit and subject, round 2 limit and subject, …
//!
//! ```text
//! limit                                         subject                            ratio
//! pgbench, two inserts a transaction      ◀──▶  api under wrk                      subject / limit
//! redis-benchmark, XADD in pipelines      ◀──▶  streamer --drain
//! XRANGE by a bare C client               ◀──▶  consumer --drain
//! pgbench, a wallet locked a transaction  ◀──▶  commands for wallets under wrk
//! a file synced and a row committed each  ◀──▶  manifests for the container under wrk
//! ```
//!
//! The servers have their default settings: every commit is on disk before it is confirmed. The subjects are the real
//! binaries, timed from start to exit. After each run the program checks that they did all of their work. Figures can be compared
//! within one sitting only, ratios also between sittings.

mod bench;
mod cases;
mod config;
mod fleet;
mod load;
mod machine;
mod nginx;
mod pgbench;
mod proc_stat;
mod process;
mod progress;
mod redis_load;
mod report;
mod sample;
mod timed;
mod tools;
mod wrk;

use anyhow::{Context, Result};
use common::shutdown::CancellationToken;

use bench::Bench;
pub use config::{Case, Cli, Command, Config};
use report::{Figures, Report, Row};
pub use timed::{TimedConfig, timed_consumer};

/// Runs the cases, prints the table and writes the results. Returns `false` if a case failed; its row has the reason.
///
/// # Errors
/// The servers do not start, the run was interrupted, or the results cannot be written.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<bool> {
    let config = config.shortened();
    let cases = config.cases();
    let bench = Bench::start(config.clone(), &shutdown).await?;
    let mut report = Report::new(&bench).await?;
    let measured = tokio::select! {
        measured = measure_all(&bench, &cases, &mut report) => measured,
        () = shutdown.cancelled() => Err(anyhow::anyhow!("interrupted")),
    };
    let succeeded = measured.is_ok() && report.succeeded();
    bench.stop(succeeded).await?;
    println!("{}", report.markdown());
    measured?;
    let path = report.write(&config.results)?;
    println!("written to {}.md and .json", path.display());
    Ok(succeeded)
}

async fn measure_all(bench: &Bench, cases: &[Case], report: &mut Report) -> Result<()> {
    for (index, case) in cases.iter().enumerate() {
        bench.progress.begin(&format!("{} ({}/{})", case.name(), index + 1, cases.len()));
        let figures = match case {
            Case::Api => cases::api::run(bench).await,
            Case::Overload => cases::overload::run(bench).await,
            Case::Booked => cases::booked::run(bench).await,
            Case::Streamer => cases::streamer::run(bench).await,
            Case::Consumer => cases::consumer::run(bench).await,
            Case::History => cases::history::run(bench).await,
            Case::Latency => cases::latency::run(bench).await,
            Case::Idle => cases::idle::run(bench).await,
            Case::Held => cases::held::run(bench).await,
            Case::Pipeline => cases::pipeline::run(bench).await,
            Case::Partitions => cases::partitions::run(bench).await,
            Case::Deep => cases::deep::run(bench).await,
            Case::Wallets => cases::wallets::run(bench).await,
            Case::Container => cases::container::run(bench).await,
            Case::Hour => cases::hour::run(bench).await,
        };
        match figures {
            Ok(figures) => report.add(&case.name(), figures),
            Err(error) => {
                let row = match error.downcast_ref::<tools::Missing>() {
                    Some(missing) => Row::left_out(&missing.to_string()),
                    None => Row::failed(&format!("{error:#}")),
                };
                report.add(&case.name(), Figures::of(vec![row]));
            }
        }
        // The figures so far must not be lost when a later case is interrupted.
        report.write(&bench.config.results).context("writing the results so far")?;
    }
    bench.progress.end();
    Ok(())
}
