//! The consumer process: configuration, logs, signals, and then [`consumer::run`] with the distance fold.

use std::process::ExitCode;

use consumer::DistanceFold;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: consumer::Config = common::config::parse();
    common::telemetry::start(&config.log);
    let outcome = async { consumer::run(config, DistanceFold::default(), common::shutdown::on_signal()?).await };
    common::telemetry::conclude(outcome.await)
}
