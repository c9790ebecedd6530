//! The launcher: what `bin/up` and `bin/test` run.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Finds or installs PostgreSQL and Redis, runs them privately, and runs processes beside them.
#[derive(Debug, Parser)]
#[command(name = "launcher", version)]
struct Config {
    /// For a server that is given by DATABASE_URL. The processes take TLS_CA_FILE out of the environment.
    #[command(flatten)]
    _tls: common::tls::TlsArgs,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find PostgreSQL and Redis; install them where they are missing.
    Setup(launcher::Extras),
    /// Start private servers under .data and every process of the Procfile; stop all of it on Ctrl-C.
    Up(launcher::UpConfig),
    /// Start private servers for the time that one command runs, with DATABASE_URL and REDIS_URL set.
    WithServers(launcher::WithServersConfig),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: Config = common::config::parse();
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
