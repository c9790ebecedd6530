//! The program `adopt`: reads its configuration, starts logging, and calls [`operator::adopt::run`].

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: operator::adopt::Config = common::config::parse();
    common::telemetry::start(&config.log);
    common::telemetry::conclude(operator::adopt::run(config).await)
}
