//! Logs. Users: every `main`.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Result;

use tracing_subscriber::EnvFilter;

/// Ends a process: 0 after a stop that was asked for, 1 after an error, which is logged in one line with its causes.
pub fn conclude(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("stopped: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts logging to standard error, line by line, so that a process manager shows each at once. `RUST_LOG` chooses
/// what is shown; the default is `info`. Colours only on a terminal, or where `FORCE_COLOR` is set.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal() || std::env::var_os("FORCE_COLOR").is_some();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(colours)
        .compact()
        .init();
}
