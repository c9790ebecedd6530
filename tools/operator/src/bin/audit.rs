//! The program `audit`: calls [`operator::audit::run`] and prints the report. It exits with 0 if everything is equal, and
//! with 1 otherwise.

use std::process::ExitCode;

use operator::audit::{Config, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: Config = process::parse();
    process::logs::start(&config.log);
    match run(&config).await {
        Ok(report) => {
            report.print(config.json);
            if report.is_equal() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => process::logs::conclude(Err(error)),
    }
}
