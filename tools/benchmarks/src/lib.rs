//! Measures the pipeline beside the limits of Postgres, Redis and HTTP, in one sitting and on the same private servers:
//! round 1 limit and subject, round 2 limit and subject, …
//!
//! ```text
//! limit                                         subject                            ratio
//! pgbench, two inserts a transaction      ◀──▶  api under wrk                      subject / limit
//! redis-benchmark, XADD in pipelines      ◀──▶  streamer --drain
//! XRANGE by a bare C client               ◀──▶  consumer --drain
//! ```
//!
//! The servers have their default settings: every commit is on disk before it is confirmed. The subjects are the real
//! binaries, timed from start to exit. After each run the program checks that they did all of their work. Figures can be compared
//! within one sitting only, ratios also between sittings.

mod bench;
mod cases;
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

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use common::shutdown::CancellationToken;

use bench::Bench;
use report::{Figures, Report, Row};
pub use timed::{TimedConfig, timed_consumer};

/// The command line of the program.
#[derive(Debug, Parser)]
#[command(name = "benchmarks", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// A part of a case that runs in a process of its own.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The settings of a measurement.
    #[command(flatten)]
    pub config: Config,
}

/// The parts of cases for which the program starts itself.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The consumer, with a clock that is read after every commit.
    #[command(hide = true)]
    TimedConsumer(TimedConfig),
}

/// Measures the pipeline beside the limits of PostgreSQL, Redis and HTTP on this machine.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Only these cases, separated by commas. Without it: all but hour.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Case>,

    /// Rounds. The report has their median.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,

    /// How long one timed load takes, in seconds.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,

    /// Records that are drained.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(1..))]
    pub records: i64,

    /// Records of the deep backlog. Ten million need some 2 GB of memory for Redis and 5 GB of disk.
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(i64).range(1..))]
    pub deep_records: i64,

    /// Rides per second in the case hour.
    #[arg(long, default_value_t = 300)]
    pub hour_rate: u32,

    /// How long the case hour takes.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    pub hour_duration: Duration,

    /// The folder of servers and logs. It is emptied before the run, and after it unless a case failed.
    #[arg(long, default_value = ".data/bench")]
    pub data: PathBuf,

    /// The folder for the results.
    #[arg(long, default_value = "tools/benchmarks/results")]
    pub results: PathBuf,

    /// One short round of everything, to test the program. The figures mean nothing.
    #[arg(long)]
    pub quick: bool,
}

/// A case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// Rides per second over HTTP, beside pgbench and nginx.
    Api,
    /// The api under far more requests than it can serve.
    Overload,
    /// Booked rides per second, charged, beside guests' rides; and replayed responses.
    Booked,
    /// Records per second from Postgres to the stream, beside redis-benchmark.
    Streamer,
    /// Records per second from the stream to a state, beside a bare reader.
    Consumer,
    /// From staging in the api to the commit of all three consumers.
    Latency,
    /// CPU and memory of the processes while nothing happens.
    Idle,
    /// Draining while other connections hold transactions open.
    Held,
    /// The highest rate at which everything keeps up.
    Pipeline,
    /// A backlog of millions.
    Deep,
    /// Tables and indexes after an hour of traffic. Runs only if asked for.
    Hour,
}

impl Case {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Config {
    /// The cases to run, in their order.
    fn cases(&self) -> Vec<Case> {
        let all = Case::value_variants().iter().copied();
        match self.only.as_slice() {
            [] => all.filter(|case| *case != Case::Hour).collect(),
            only => all.filter(|case| only.contains(case)).collect(),
        }
    }

    fn shortened(mut self) -> Self {
        if self.quick {
            (self.runs, self.seconds) = (1, 2);
            self.records = self.records.min(50_000);
            self.deep_records = self.deep_records.min(200_000);
            self.hour_duration = self.hour_duration.min(Duration::from_secs(20));
        }
        self
    }
}

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
            Case::Latency => cases::latency::run(bench).await,
            Case::Idle => cases::idle::run(bench).await,
            Case::Held => cases::held::run(bench).await,
            Case::Pipeline => cases::pipeline::run(bench).await,
            Case::Deep => cases::deep::run(bench).await,
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
