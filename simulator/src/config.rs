//! The simulator's flags and environment variables.

use std::time::Duration;

use clap::Parser;
use process::ProcessArgs;

/// Posts rides to the api, reads and writes wallets if asked to, and prints a summary of the responses.
#[derive(Debug, Clone, Parser)]
#[command(name = "simulator", version)]
pub struct Config {
    /// The port of the api on this machine.
    #[arg(long, env = "API_PORT", default_value_t = 5005)]
    pub api_port: u16,

    /// The URL of the api, if it is on another machine: scheme, host and port
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    pub api_url: Option<String>,

    /// Rides per second, or `max` for as many as the api takes. Without it: calm traffic, about one ride per second
    #[arg(long, value_parser = parse_rate)]
    pub rate: Option<Rate>,

    /// The most rides in flight at once. 0 posts no rides, for traffic of wallets alone.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub concurrency: u16,

    /// The share of rides that are booked, 0 to 1. Half of these requests fail midway, some are sent five times at once
    #[arg(long, default_value_t = 0.0, value_parser = parse_share)]
    pub booked: f64,

    /// The share of accepted rides for which a manifest is filed at the container, 0 to 1. Some have a photo, a few are refused
    #[arg(long, default_value_t = 0.0, value_parser = parse_share)]
    pub manifests: f64,

    /// The port of the container on this machine.
    #[arg(long, env = "CONTAINER_PORT", default_value_t = 5008)]
    pub container_port: u16,

    /// The URL of the container, if it is on another machine: scheme, host and port
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    pub container_url: Option<String>,

    /// Workers that read wallets, one request after another.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub wallet_reads: u16,

    /// Workers that credit, debit and transfer, one request after another.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub wallet_writes: u16,

    /// The pause of such a worker after each response, for example 100ms. 0s makes none
    #[arg(long, default_value = "100ms", value_parser = humantime::parse_duration)]
    pub period: Duration,

    /// The wallet that they read and write. Without it: ten new wallets
    #[arg(long, value_name = "KSUID", value_parser = parse_ksuid)]
    pub wallet: Option<String>,

    /// Stop after this many requests. A retry by a client that books is none.
    #[arg(long)]
    pub count: Option<u64>,

    /// Stop after this time, for example 30s or 2m.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,

    /// Seed of distances and amounts: the same seed sends the same requests. Without it the process draws one and logs it.
    #[arg(long)]
    pub seed: Option<u64>,

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

impl Config {
    /// The URL of the api, without a slash at its end.
    pub fn base_url(&self) -> String {
        self.api_url.clone().unwrap_or_else(|| format!("http://127.0.0.1:{}", self.api_port))
    }

    /// The URL of the container, without a slash at its end.
    pub fn container_url(&self) -> String {
        self.container_url.clone().unwrap_or_else(|| format!("http://127.0.0.1:{}", self.container_port))
    }
}

/// How fast rides are posted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// This many rides per second, however long the responses take, as far as the concurrency allows.
    PerSecond(f64),
    /// The next ride as soon as a response arrives.
    Max,
}

fn parse_url(text: &str) -> Result<String, String> {
    match reqwest::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none() => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err("give a URL such as http://127.0.0.1:5005".to_owned()),
    }
}

fn parse_ksuid(text: &str) -> Result<String, String> {
    if text.len() == 27 && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        Ok(text.to_owned())
    } else {
        Err("give a KSUID of 27 letters and digits, such as POST /wallets gives".to_owned())
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("give a number between 0 and 1, for example 0.5".to_owned()),
    }
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    match (text, text.parse::<f64>()) {
        ("max", _) => Ok(Rate::Max),
        (_, Ok(rate)) if (0.001..=1_000_000.0).contains(&rate) => Ok(Rate::PerSecond(rate)),
        _ => Err("give rides per second, for example 50, or max".to_owned()),
    }
}
