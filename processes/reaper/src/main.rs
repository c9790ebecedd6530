//! The reaper process: configuration, logs, signals, and then [`reaper::run`].

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: reaper::Config = common::config::parse();
    common::telemetry::start(&config.log);
    let outcome = async { reaper::run(config, common::shutdown::on_signal()?).await };
    common::telemetry::conclude(outcome.await)
}
