//! The chaos program: configuration, signals, and then [`chaos::run`].

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let config: chaos::Config = common::config::parse();
    let outcome = async { chaos::run(config, common::shutdown::on_signal()?).await };
    match outcome.await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
