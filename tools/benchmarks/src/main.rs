//! The benchmarks program: configuration, signals, and then [`benchmarks::run`].

use std::path::Path;
use std::process::ExitCode;

use benchmarks::{Cli, Command};

fn main() -> ExitCode {
    // First, because the settings are read from the environment.
    match launcher::load_env_file(Path::new(".env")) {
        Ok(()) => run(process::parse()),
        Err(error) => {
            launcher::tell(&format!("{error:#}"));
            ExitCode::from(process::BAD_SETTING)
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(cli: Cli) -> ExitCode {
    let outcome = async {
        let shutdown = process::on_signal()?;
        match cli.command {
            Some(Command::TimedConsumer(config)) => benchmarks::timed_consumer(config, shutdown).await.map(|()| true),
            None => benchmarks::run(cli.config, shutdown).await,
        }
    };
    process::logs::conclude_verdict(outcome.await)
}
