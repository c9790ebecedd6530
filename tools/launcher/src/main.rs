//! The launcher, which `bin/up`, `bin/test` and `bin/bench` run.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use launcher::{Command, Config};

fn main() -> ExitCode {
    // First, because the settings are read from the environment.
    if let Err(error) = launcher::load_env_file(Path::new(".env")) {
        launcher::tell(&format!("{error:#}"));
        return ExitCode::from(process::BAD_SETTING);
    }
    run(process::parse()).unwrap_or_else(|error| {
        launcher::tell(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}

#[tokio::main(flavor = "current_thread")]
async fn run(config: Config) -> Result<ExitCode> {
    match config.command {
        Command::Setup(extras) => launcher::setup(extras).map(|()| ExitCode::SUCCESS),
        Command::Up(up) => launcher::up(up).await.map(|()| ExitCode::SUCCESS),
        Command::WithServers(with) => launcher::with_servers(with).await,
    }
}
