//! The schema and the roles, compiled in, so that a program can set up an empty database by itself.

use crate::Error;
use crate::session::Session;

/// The text of `schema.sql`.
pub const SCHEMA: &str = include_str!("../../../schema.sql");

/// Creates what is missing. Does no harm to what is there.
///
/// # Errors
/// Postgres is away, older than 14, or the role may not create tables.
pub async fn apply_schema(client: &impl Session) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(SCHEMA).await
}

/// The text of `roles.sql`.
pub const ROLES: &str = include_str!("../../../ops/roles.sql");

/// Two users for development and tests, as text: `seed.sql`.
pub const SEED: &str = include_str!("../../../ops/seed.sql");

/// Creates the roles that are missing, and gives each exactly what it needs. Applies to the tables of [`apply_schema`].
///
/// # Errors
/// Postgres is away, a table is missing, or the role may not create roles.
pub async fn apply_roles(client: &impl Session) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(ROLES).await
}

/// The version of `schema.sql` that this crate goes with. Raise both together.
pub const SCHEMA_VERSION: i32 = 4;

/// Prepares a session that reads or extends the log: the tables must be there, of this version and of this cluster, and
/// the planner is told to walk indexes.
///
/// Every query of this crate wants a few rows at one end of an index, but
/// the tables grow by orders of magnitude between two ANALYZE runs, and a plan made from stale statistics would scan
/// them whole. For the same reason a plan is made once and kept: it is the same whatever the parameters are. Call it once
/// on every such connection.
///
/// # Errors
/// [`Error::SchemaMissing`], [`Error::SchemaVersion`] or [`Error::OtherCluster`]: an operator must act, see
/// [`Error::is_final`]. Otherwise Postgres is away.
pub async fn prepare_session(client: &impl Session) -> Result<(), Error> {
    client.batch_execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off; SET plan_cache_mode = force_generic_plan").await?;
    let identity = identity(client).await?;
    match identity.schema_version {
        SCHEMA_VERSION if identity.is_of_this_cluster() => Ok(()),
        SCHEMA_VERSION => {
            Err(Error::OtherCluster { log_cluster: identity.log_cluster, this_cluster: identity.this_cluster })
        }
        found => Err(Error::SchemaVersion { found, wanted: SCHEMA_VERSION }),
    }
}

/// What the log says of itself, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The version of `schema.sql` that was applied: 1 before there was a number, 0 if there is none though there should be.
    pub schema_version: i32,
    /// The cluster whose transaction ids the log speaks of.
    pub log_cluster: i64,
    /// The cluster we are connected to.
    pub this_cluster: i64,
}

impl Identity {
    /// Whether the log's transaction ids mean something here.
    pub fn is_of_this_cluster(&self) -> bool {
        self.log_cluster == self.this_cluster
    }
}

/// Reads what the log says of itself.
///
/// # Errors
/// [`Error::SchemaMissing`] if `schema.sql` was not applied; otherwise Postgres is away, or the role may not read it.
pub async fn identity(client: &impl Session) -> Result<Identity, Error> {
    let tables = client
        .query_one(
            "-- pglog::identity
             SELECT to_regclass('log_batches') IS NOT NULL, to_regclass('log_identity') IS NOT NULL,
                    (SELECT system_identifier FROM pg_control_system())",
            &[],
        )
        .await?;
    let this_cluster = tables.get(2);
    match (tables.get(0), tables.get(1)) {
        (false, _) => return Err(Error::SchemaMissing),
        (true, false) => return Ok(Identity { schema_version: 1, log_cluster: this_cluster, this_cluster }),
        (true, true) => {}
    }
    // Two rows, if a dump was restored into tables that were there before: then the other cluster's is the one to see.
    let row = client
        .query_one(
            "-- pglog::identity
             SELECT COALESCE(max(schema_version), 0),
                    COALESCE(min(system_identifier) FILTER (WHERE system_identifier <> $1), $1) FROM log_identity",
            &[&this_cluster],
        )
        .await?;
    Ok(Identity { schema_version: row.get(0), log_cluster: row.get(1), this_cluster })
}
