//! The launcher, which `bin/up`, `bin/test` and `bin/bench` run.

use std::process::ExitCode;

use launcher::{Command, Config};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: Config = process::parse();
    let outcome = match config.command {
        Command::Setup(extras) => launcher::setup(extras).map(|()| ExitCode::SUCCESS),
        Command::Up(up) => launcher::up(up).await.map(|()| ExitCode::SUCCESS),
        Command::WithServers(with) => launcher::with_servers(with).await,
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}
