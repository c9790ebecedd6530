//! From a bare machine to a running system: find or install the servers, run them privately, run the Procfile.
//!
//! Nothing here collides with servers that are there already: the private ones live under `.data`, listen on unix
//! sockets only, and are stopped with the launcher. Where `DATABASE_URL` or `REDIS_URL` is set, that server is used and
//! none is started.

mod find;
mod install;
mod leftovers;
mod lock;
mod postgres_server;
mod procfile;
mod redis_server;
mod summary;
mod supervise;
mod up;
mod with_servers;

pub use find::{PostgresBinaries, find_clock_library, find_postgres, find_redis};
pub use postgres_server::PostgresServer;
pub use procfile::{Entry, parse_procfile};
pub use redis_server::RedisServer;
pub use up::{UpConfig, up};
pub use with_servers::{WithServersConfig, with_servers};

/// Finds both servers' binaries, and installs what is missing. `for_chaos`: the library that steps clocks too, if it can be
/// had.
///
/// # Errors
/// Something is missing and cannot be installed; the text says what to run.
pub fn setup(for_chaos: bool) -> anyhow::Result<()> {
    install::install_missing()?;
    if for_chaos {
        install::install_clock_library();
    }
    Ok(())
}
