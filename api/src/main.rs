//! The api process: configuration, logs, signals, and then [`api::run`].

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let config: api::Config = common::config::parse();
    common::telemetry::start(&config.log);
    let outcome = async { api::run(config, common::shutdown::on_signal()?).await };
    common::telemetry::conclude(outcome.await)
}
