//! The audit: configuration, and then [`operator::audit::run`]. Ends with 0 if all is equal, and with 1 if not.

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
