//! A process in thirty lines: it inserts a row into the table `ticks` ten times a second. Logs, signals, back-off, health and
//! metrics come from the skeleton.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use common::shutdown::CancellationToken;
use connect::PostgresArgs;
use process::{Failure, ProcessArgs, Turn, Until, Work};

/// Inserts a row into the table `ticks` ten times a second.
#[derive(Debug, Parser)]
struct Config {
    #[command(flatten)]
    postgres: PostgresArgs,
    #[command(flatten)]
    process: ProcessArgs,
}

struct Ticker(Config);

impl Work for Ticker {
    type Fault = ();

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        let client = connect::postgres::connect(&self.0.postgres.database_url, "ticker", || {}).await?;
        client.execute("INSERT INTO ticks DEFAULT VALUES", &[]).await.context("inserting a tick")?;
        Ok(Turn::done().pausing(Duration::from_millis(100)))
    }
}

async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    let health = monitor::start(&config.process.monitor).await?;
    let pulse = health.pulse("ticks", Duration::from_secs(1));
    process::repeat(&mut Ticker(config), Until::Stopped, &pulse, &shutdown).await
}

fn main() -> std::process::ExitCode {
    process::main(|config: &Config| &config.process, run)
}
