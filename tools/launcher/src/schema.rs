//! The SQL files of the repository, compiled in, so that a program can set up an empty database by itself.

use pglog::{PartitionCount, Session};

/// The text of `schema.sql`: all tables.
pub const SCHEMA: &str = include_str!("../../../schema.sql");

/// The text of `roles.sql`: a role per process, and its privileges.
pub const ROLES: &str = include_str!("../../../ops/roles.sql");

/// The text of `seed.sql`: two users for development and tests.
pub const SEED: &str = include_str!("../../../ops/seed.sql");

/// Creates missing tables and upgrades older ones. Leaves the others as they are.
///
/// # Errors
/// Postgres is away or older than 14, a lock could not be had in time, or the role may not create tables. Nothing was
/// changed: apply it again.
pub async fn apply_schema(client: &impl Session) -> Result<(), tokio_postgres::Error> {
    apply_schema_with(client, None).await
}

/// As [`apply_schema`]. A log that is made has so many `partitions`; 1 if that is `None`.
///
/// # Errors
/// As [`apply_schema`]; also if the log has another number of partitions.
pub async fn apply_schema_with(
    client: &impl Session,
    partitions: Option<PartitionCount>,
) -> Result<(), tokio_postgres::Error> {
    pglog::apply_schema(client, SCHEMA, partitions).await
}

/// Creates missing roles, and gives each exactly the privileges that it needs on the tables of [`apply_schema`].
///
/// # Errors
/// Postgres is away, a table is missing, or the role may not create roles. Nothing was changed.
pub async fn apply_roles(client: &impl Session) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(ROLES).await
}
