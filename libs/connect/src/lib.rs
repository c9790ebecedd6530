//! Connections to Postgres, and TLS for Postgres and Redis.
//!
//! Every wait for a server is bounded, so no process hangs on a connection that is dead.

mod hosts;
mod opener;
pub mod postgres;
mod session;
pub mod tls;
mod url;

pub use postgres::{PostgresArgs, StandbyArgs};
pub use url::{describe, parse_url};
