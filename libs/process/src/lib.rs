//! The skeleton of a process, written once. A process is its configuration and one bounded unit of work:
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use anyhow::Result;
//! use clap::Parser;
//! use common::shutdown::CancellationToken;
//! use process::{Failure, ProcessArgs, Turn, Until, Work};
//!
//! /// Counts up once a second.
//! #[derive(Debug, Parser)]
//! struct Config {
//!     #[command(flatten)]
//!     process: ProcessArgs,
//! }
//!
//! struct Counter(u64);
//!
//! impl Work for Counter {
//!     type Fault = ();
//!
//!     async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
//!         self.0 += 1;
//!         Ok(Turn::done().pausing(Duration::from_secs(1)))
//!     }
//! }
//!
//! async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
//!     let health = monitor::start(&config.process.monitor).await?;
//!     let pulse = health.pulse("counts", Duration::from_secs(5));
//!     process::repeat(&mut Counter(0), Until::Stopped, &pulse, &shutdown).await
//! }
//!
//! # #[allow(dead_code)]
//! fn main() -> std::process::ExitCode {
//!     process::main(|config: &Config| &config.process, run)
//! }
//! ```
//!
//! [`main`] parses the arguments, starts logs and spans, catches SIGINT and SIGTERM, and turns the result into an exit status.
//! [`repeat()`] runs the unit again and again. It beats the pulse after each success, backs off with jitter after each error,
//! and stops between two units. [`repeat_with_faults`] also chooses the fault that is injected into each unit.

mod arguments;
mod command;
mod failures;
pub mod logs;
mod notify;
#[cfg(feature = "pages")]
pub mod pages;
mod repeat;
mod signals;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser};
use common::shutdown::CancellationToken;
use connect::postgres::shared_session;
use monitor::MonitorArgs;
use tokio::runtime::{Builder, Runtime};

pub use arguments::{BAD_SETTING, parse};
pub use command::{command, quoted};
pub use logs::LogArgs;
pub use notify::ready;
pub use repeat::{Failure, Injection, Turn, Until, Work, repeat, repeat_with_faults};
pub use signals::on_signal;

/// The arguments of every process.
#[derive(Debug, Clone, Args)]
pub struct ProcessArgs {
    /// Metrics and health.
    #[command(flatten)]
    pub monitor: MonitorArgs,

    /// Logs and spans.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Runs a process from its arguments to its exit status, on one thread. `args` finds the arguments of every process in the
/// configuration. `run` gets a token that SIGINT or SIGTERM cancels.
pub fn main<C: Parser>(
    args: impl FnOnce(&C) -> &ProcessArgs,
    run: impl AsyncFnOnce(C, CancellationToken) -> Result<()>,
) -> ExitCode {
    main_on(Builder::new_current_thread().enable_all().build(), args, run)
}

/// As [`main`], on the runtime that the caller has built.
pub fn main_on<C: Parser>(
    runtime: std::io::Result<Runtime>,
    args: impl FnOnce(&C) -> &ProcessArgs,
    run: impl AsyncFnOnce(C, CancellationToken) -> Result<()>,
) -> ExitCode {
    let config: C = parse();
    logs::start(&args(&config).log);
    let runtime = match runtime.context("starting the runtime") {
        Ok(runtime) => runtime,
        Err(error) => return logs::conclude(Err(error)),
    };
    // The outcome is logged before the runtime is dropped, which waits for blocking work that may hang.
    logs::conclude(runtime.block_on(async {
        let shutdown = on_signal()?;
        tokio::select! {
            outcome = run(config, shutdown) => outcome,
            // No part of the process can do its work then.
            shared = shared_session() => Err(shared.into()),
        }
    }))
}
