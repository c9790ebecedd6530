//! The flags of the program, and the cases.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::timed::TimedConfig;

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

    /// Units of 1 MB that wait in the case container. Each needs 2 MB of disk.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    pub waiting_units: u32,

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
    /// Records per second that are archived, and what the history adds to the cost of a record.
    History,
    /// From staging in the api to the commit of all three consumers.
    Latency,
    /// CPU and memory of the processes while nothing happens.
    Idle,
    /// Draining while other connections hold transactions open.
    Held,
    /// The highest rate at which everything keeps up.
    Pipeline,
    /// The cost of a record in 1, 8 and 16 partitions; 16 partitions at rest; three nodes of a cluster beside one.
    Partitions,
    /// A backlog of millions.
    Deep,
    /// Commands for wallets and reads of them, beside pgbench and nginx; the read model rebuilt; long histories.
    Wallets,
    /// Manifests per second into three destinations, beside a synced file and a commit each; a destination that is away.
    Container,
    /// Tables and indexes after an hour of traffic. Runs only if asked for.
    Hour,
}

impl Case {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Config {
    /// The cases to run, in their order.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let all = Case::value_variants().iter().copied();
        match self.only.as_slice() {
            [] => all.filter(|case| *case != Case::Hour).collect(),
            only => all.filter(|case| only.contains(case)).collect(),
        }
    }

    pub(crate) fn shortened(mut self) -> Self {
        if self.quick {
            (self.runs, self.seconds) = (1, 2);
            self.records = self.records.min(50_000);
            self.deep_records = self.deep_records.min(200_000);
            self.waiting_units = self.waiting_units.min(100);
            self.hour_duration = self.hour_duration.min(Duration::from_secs(20));
        }
        self
    }
}
