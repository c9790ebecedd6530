//! Connections to Postgres, and TLS for Postgres and Redis.

pub mod postgres;
pub mod tls;

pub use postgres::PostgresArgs;
