//! From a bare machine to a running system: find or install the servers, run them privately, run the Procfile.
//!
//! Nothing here collides with servers that are there already: the private ones live under `.data`, listen on unix
//! sockets only, and are stopped with the launcher. Where `DATABASE_URL` or `REDIS_URL` is set, that server is used and
//! none is started.

mod board;
mod find;
mod install;
mod leftovers;
mod lock;
mod postgres_server;
mod procfile;
mod redis_server;
mod schema;
mod screen;
mod summary;
mod supervise;
mod up;
mod watch;
mod with_servers;

pub use find::{PostgresBinaries, find_clock_library, find_postgres, find_redis};
pub use leftovers::Register;
pub use lock::lock;
pub use postgres_server::PostgresServer;
pub use procfile::{Entry, parse_procfile};
pub use redis_server::RedisServer;
pub use schema::{ROLES, SCHEMA, SEED, apply_roles, apply_schema};
pub use up::{UpConfig, up};
pub use with_servers::{WithServersConfig, with_servers};

/// Finds or installs PostgreSQL and Redis, runs them privately, and runs processes beside them.
#[derive(Debug, clap::Parser)]
#[command(name = "launcher", version)]
pub struct Config {
    /// For a server that is given by DATABASE_URL. The processes take TLS_CA_FILE out of the environment.
    #[command(flatten)]
    _tls: common::tls::TlsArgs,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the launcher does.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Find PostgreSQL and Redis; install them where they are missing.
    Setup(Extras),
    /// Start private servers under .data and every process of the Procfile; stop all of it on Ctrl-C.
    Up(UpConfig),
    /// Start private servers for the time that one command runs, with DATABASE_URL and REDIS_URL set.
    WithServers(WithServersConfig),
}

/// What else is installed.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Extras {
    /// Install libfaketime too, where that is possible: chaos steps the clock of Redis with it.
    #[arg(long)]
    pub for_chaos: bool,

    /// Install what tests need too: Python packages into .data/venv (tests/requirements.txt), a browser, systemd-analyze, groff.
    #[arg(long)]
    pub for_tests: bool,

    /// Install wrk, nginx and what else the benchmarks compare with, where that is possible.
    #[arg(long)]
    pub for_benchmarks: bool,
}

/// Finds both servers' binaries, and installs what is missing.
///
/// # Errors
/// A server, or what the tests need, is missing and cannot be installed; the text says what to run.
pub fn setup(extras: Extras) -> anyhow::Result<()> {
    // All of these start servers of their own, whatever is given by URL.
    install::install_missing(extras.for_chaos || extras.for_tests || extras.for_benchmarks)?;
    if extras.for_chaos {
        install::install_clock_library();
    }
    if extras.for_tests {
        install::install_python_packages()?;
        install::install_browser()?;
        install::install_test_tools()?;
    }
    if extras.for_benchmarks {
        install::install_benchmark_tools();
    }
    Ok(())
}
