//! From a bare machine to a running system: find or install the servers, run them privately, run the Procfile.
//!
//! The private servers cannot collide with other servers of the machine: they live under `.data`, listen on unix sockets only, and
//! end with the launcher. A server or an account that the launcher has not started is used only if `--use` names its variable.

mod board;
mod bound;
mod env_file;
mod find;
mod install;
mod leftovers;
mod lock;
mod outside;
mod ports;
mod postgres_server;
mod procfile;
mod redis_cluster;
mod redis_server;
mod reshape;
mod schema;
mod screen;
mod servers;
mod summary;
mod supervise;
mod totals;
mod up;
mod watch;
mod with_servers;

pub use env_file::load_env_file;
pub use find::{PostgresBinaries, find_clock_library, find_postgres, find_redis};
pub use leftovers::Register;
pub use lock::lock;
pub use outside::clean_environment;
pub use ports::{ClaimedPort, claim_ports};
pub use postgres_server::PostgresServer;
pub use procfile::{Entry, parse_procfile};
pub use redis_cluster::{RedisCluster, RedisNode};
pub use redis_server::RedisServer;
pub use reshape::SlotMove;
pub use schema::{ROLES, SCHEMA, SEED, apply_roles, apply_schema, apply_schema_with};
pub use screen::tell;
pub use up::{UpConfig, up};
pub use with_servers::{WithServersConfig, with_servers};

/// Finds or installs PostgreSQL and Redis, runs them privately, and runs processes beside them.
#[derive(Debug, clap::Parser)]
#[command(name = "launcher", version)]
pub struct Config {
    /// Certificates for a server that is given by DATABASE_URL. The processes read TLS_CA_FILE from the environment.
    #[command(flatten)]
    _tls: connect::tls::TlsArgs,

    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of the launcher.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Find PostgreSQL and Redis; install them where they are missing.
    Setup(Extras),
    /// Start private servers under .data and every process of the Procfile; stop all of it on Ctrl-C.
    Up(UpConfig),
    /// Start private servers for the time that one command runs, with DATABASE_URL and REDIS_URL set.
    WithServers(WithServersConfig),
}

/// Tools to install beside the servers.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Extras {
    /// Install libfaketime too, where that is possible: chaos steps the clock of Redis with it.
    #[arg(long)]
    pub for_chaos: bool,

    /// Install the tools of the tests too: Python packages into .data/venv (tests/requirements.txt), a browser, systemd-analyze, groff.
    #[arg(long)]
    pub for_tests: bool,

    /// Install wrk, nginx and the other programs that the benchmarks compare with, where that is possible.
    #[arg(long)]
    pub for_benchmarks: bool,
}

/// Finds the binaries of both servers, and installs missing ones.
///
/// # Errors
/// A server or a tool of the tests is missing and cannot be installed. The text says which command to run.
pub fn setup(extras: Extras) -> anyhow::Result<()> {
    install::install_missing(install::Needed { postgres: true, redis: true })?;
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
