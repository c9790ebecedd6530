//! The chaos program: configuration, signals, and then [`chaos::run`].

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let config: chaos::Config = process::parse();
    let outcome = async { chaos::run(config, process::on_signal()?).await };
    process::logs::conclude_verdict(outcome.await)
}
