//! The payments process: configuration, logs, signals, and then [`payments::run`].

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: payments::Config = common::config::parse();
    common::telemetry::start(&config.log);
    let outcome = async { payments::run(config, common::shutdown::on_signal()?).await };
    common::telemetry::conclude(outcome.await)
}
