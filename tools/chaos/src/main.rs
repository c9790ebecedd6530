//! The chaos program: configuration, signals, and then [`chaos::run`].

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let config: chaos::Config = common::config::parse();
    let outcome = async { chaos::run(config, common::shutdown::on_signal()?).await };
    common::telemetry::conclude_verdict(outcome.await)
}
