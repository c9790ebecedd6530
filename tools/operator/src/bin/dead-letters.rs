//! The program `dead-letters`: calls [`operator::dead_letters::run`]. It exits with 1 if something could not be done.

use std::process::ExitCode;

use operator::dead_letters::{Config, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: Config = process::parse();
    process::logs::start(&config.log);
    match run(&config).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => process::logs::conclude(Err(error)),
    }
}
