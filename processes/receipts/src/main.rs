//! The receipts process: configuration, logs, signals, and then [`receipts::run`].

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: receipts::Config = common::config::parse();
    common::telemetry::start(&config.consumer.log);
    let outcome = async { receipts::run(config, common::shutdown::on_signal()?).await };
    common::telemetry::conclude(outcome.await)
}
