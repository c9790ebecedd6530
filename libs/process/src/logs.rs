//! The process's log, its exit status, and the start of the span export. Users: every `main`.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use common::stay_down::StayDown;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::arguments::BAD_SETTING;
use crate::failures::{self, ToldOnce};

/// The exit status of a process: 0 after success, 2 after [`StayDown`], 1 after any other error. An error is logged in one line
/// with its causes. Sends the last spans first.
pub fn conclude(outcome: anyhow::Result<()>) -> ExitCode {
    traces::flush();
    failures::tell_at_exit();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("stopped: {error:#}");
            if error.is::<StayDown>() { ExitCode::from(BAD_SETTING) } else { ExitCode::FAILURE }
        }
    }
}

/// As [`conclude`], for a program that checks something and prints its findings itself: 0 if the check passed, 1 if it failed or
/// could not be made. An error is printed, not logged.
pub fn conclude_verdict(outcome: anyhow::Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            if error.is::<StayDown>() { ExitCode::from(BAD_SETTING) } else { ExitCode::FAILURE }
        }
    }
}

/// The arguments for logs and spans.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// The level of the log: error, warn, info, debug or trace; or a level per crate, for example info,consumer=debug
    #[arg(long, env = "RUST_LOG", default_value = "info", value_parser = parse_filter)]
    pub rust_log: String,

    /// The format of log lines: text for people, json for programs
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// The collector of spans, for example http://localhost:4318: OTLP to its path /v1/traces. Not set: no spans
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", hide_env_values = true, value_parser = parse_endpoint)]
    pub otel_exporter_otlp_endpoint: Option<String>,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per line, for programs.
    Json,
}

fn parse_filter(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; give a level such as info or debug")),
    }
}

fn parse_endpoint(text: &str) -> Result<String, String> {
    // OpenTelemetry treats an empty variable as not set.
    if text.is_empty() || text.starts_with("http://") || text.starts_with("https://") {
        Ok(text.to_owned())
    } else {
        Err("give a URL such as http://localhost:4318".to_owned())
    }
}

/// Starts logging to standard error, line by line, so that a process manager shows each line at once. Lines are coloured on
/// a terminal, or if `FORCE_COLOR` is set. Starts the export of spans too, if a collector is set. If the export cannot start,
/// this logs a warning and the process goes on without.
///
/// A failure that repeats is told when it begins, now and then with a count, and when it ends.
pub fn start(args: &LogArgs) {
    let own = failures::OWN_LEVEL.parse().expect("a level per module is a directive");
    let filter = EnvFilter::new(&args.rust_log).add_directive(own);
    let colours = std::io::stderr().is_terminal() || std::env::var_os("FORCE_COLOR").is_some();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // If stderr is closed, reporting the failed write would panic.
        .log_internal_errors(false)
        .with_target(false);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(colours).compact().finish().with(ToldOnce).init(),
        LogFormat::Json => builder.with_ansi(false).json().flatten_event(true).finish().with(ToldOnce).init(),
    }
    if let Some(endpoint) = args.otel_exporter_otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) {
        match traces::start(endpoint) {
            Ok(()) => info!("spans are exported"),
            Err(error) => {
                warn!(error = format!("{error:#}"), "OTEL_EXPORTER_OTLP_ENDPOINT is set: spans are not exported")
            }
        }
    }
}
