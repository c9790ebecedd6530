//! The simulator process: configuration, logs, signals, and then [`simulator::run`].

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: simulator::Config = common::config::parse();
    common::telemetry::start(&config.log);
    let outcome = async { simulator::run(config, common::shutdown::on_signal()?).await };
    common::telemetry::conclude(outcome.await.map(|summary| println!("{summary}")))
}
