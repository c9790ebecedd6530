//! The completer process: configuration, logs, signals, and then [`completer::run`].

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: completer::Config = common::config::parse();
    common::telemetry::start(&config.log);
    let outcome = async { completer::run(config, common::shutdown::on_signal()?).await };
    common::telemetry::conclude(outcome.await)
}
