//! The program `doctor`: calls [`operator::doctor::run`]. It exits with 1 if a check failed,
//! and with 2 after a bad setting.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: operator::doctor::Config = process::parse();
    match operator::doctor::run(&config).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(process::BAD_SETTING)
        }
    }
}
