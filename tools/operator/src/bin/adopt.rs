//! The program `adopt`: reads its configuration, starts logging, and calls [`operator::adopt::run`].

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: operator::adopt::Config = process::parse();
    process::logs::start(&config.log);
    process::logs::conclude(operator::adopt::run(config).await)
}
