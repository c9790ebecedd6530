//! The streamer process: configuration, logs, signals, and then [`streamer::run`].

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: streamer::Config = common::config::parse();
    common::telemetry::start(&config.log);
    let outcome = async { streamer::run(config, common::shutdown::on_signal()?).await };
    common::telemetry::conclude(outcome.await)
}
