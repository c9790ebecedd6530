//! The doctor program: configuration, and then [`operator::doctor::run`].

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: operator::doctor::Config = process::parse();
    if operator::doctor::run(&config).await { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
