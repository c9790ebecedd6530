//! Logs. Users: every `main`.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use tracing_subscriber::EnvFilter;

/// Ends a process: 0 after a stop that was asked for, 1 after an error, which is logged in one line with its causes.
pub fn conclude(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("stopped: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// As [`conclude`], for a program that looks whether something holds, and prints by itself what it found: 1 if it does not.
pub fn conclude_verdict(outcome: anyhow::Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is logged.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What is logged: error, warn, info, debug or trace, or one of them for a part, for example info,consumer=debug
    #[arg(long, env = "RUST_LOG", default_value = "info", value_parser = parse_filter)]
    pub rust_log: String,

    /// How lines of the log look: for people, or for programs
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How lines of the log look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

fn parse_filter(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; give a level such as info or debug")),
    }
}

/// Starts logging to standard error, line by line, so that a process manager shows each at once. Colours only on a
/// terminal, or where `FORCE_COLOR` is set.
pub fn start(args: &LogArgs) {
    let filter = EnvFilter::new(&args.rust_log);
    let colours = std::io::stderr().is_terminal() || std::env::var_os("FORCE_COLOR").is_some();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Of a log that nobody reads any more it could only be complained there, and that complaint would be a panic.
        .log_internal_errors(false)
        .with_target(false);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(colours).compact().init(),
        LogFormat::Json => builder.with_ansi(false).json().flatten_event(true).init(),
    }
}
