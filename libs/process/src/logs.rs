//! Logs, and the export of spans. Users: every `main`.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

/// Ends a process: 0 after a stop that was asked for, 1 after an error, which is logged in one line with its causes. The last
/// spans are sent first.
pub fn conclude(outcome: anyhow::Result<()>) -> ExitCode {
    traces::flush();
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

    /// A collector of spans, for example http://localhost:4318: they go to its path /v1/traces by OTLP. Not set: nowhere
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", hide_env_values = true, value_parser = parse_endpoint)]
    pub otel_exporter_otlp_endpoint: Option<String>,
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

fn parse_endpoint(text: &str) -> Result<String, String> {
    // Set to nothing is not set: so OpenTelemetry wants it.
    match text.is_empty() || text.starts_with("http://") || text.starts_with("https://") {
        true => Ok(text.to_owned()),
        false => Err("give a URL such as http://localhost:4318".to_owned()),
    }
}

/// Starts logging to standard error, line by line, so that a process manager shows each at once. Colours only on a
/// terminal, or where `FORCE_COLOR` is set. Starts the export of spans too, if it is asked for; if that is impossible the
/// process goes on without, and says so.
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
    if let Some(endpoint) = args.otel_exporter_otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) {
        match traces::start(endpoint) {
            Ok(()) => info!("spans are exported"),
            Err(error) => {
                warn!(error = format!("{error:#}"), "OTEL_EXPORTER_OTLP_ENDPOINT is set: spans are not exported")
            }
        }
    }
}
