//! The dashboard process: configuration, logs, signals, and then [`dashboard::run`].

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: dashboard::Config = common::config::parse();
    common::telemetry::start(&config.log);
    let outcome = async { dashboard::run(config, common::shutdown::on_signal()?).await };
    common::telemetry::conclude(outcome.await)
}
