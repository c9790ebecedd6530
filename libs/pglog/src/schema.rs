//! The log's tables: creating them, and checking before use that they are of this version and of this cluster.

use crate::Error;
use crate::partition::PartitionCount;
use crate::session::Session;

/// The text of `log.sql`, which creates the log's tables and no others.
pub const LOG_SCHEMA: &str = include_str!("../log.sql");

/// The version of `log.sql` that this crate goes with. Raise both together. A table beside the log does not change it: every
/// program of another version refuses to work, also in services that do not know the table.
pub const SCHEMA_VERSION: i32 = 7;

/// Creates the log's tables where they are missing, and upgrades older ones. Leaves the others as they are. A log that is made
/// has so many `partitions`; 1 if that is `None`.
///
/// ```no_run
/// # async fn f(client: &tokio_postgres::Client) -> Result<(), pglog::Error> {
/// pglog::apply_log_schema(client, pglog::PartitionCount::new(8)).await?;
/// pglog::prepare_session(client).await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// Postgres is away or older than 14, a lock could not be had in time, the role may not create tables, or the log has another
/// number of partitions. Nothing was changed.
pub async fn apply_log_schema(
    client: &impl Session,
    partitions: Option<PartitionCount>,
) -> Result<(), tokio_postgres::Error> {
    apply_schema(client, LOG_SCHEMA, partitions).await
}

/// Applies a file that has the lines of [`LOG_SCHEMA`], as [`apply_log_schema`] does.
///
/// # Errors
/// As [`apply_log_schema`].
pub async fn apply_schema(
    client: &impl Session,
    file: &str,
    partitions: Option<PartitionCount>,
) -> Result<(), tokio_postgres::Error> {
    let count = partitions.map_or_else(String::new, |count| count.to_string());
    client.batch_execute(&format!("SET rocket_rides.partitions = '{count}'")).await?;
    client.batch_execute(&plain_sql(file)).await
}

/// The file without the lines that only psql understands: those between `-- >>> psql` and `-- <<< psql`.
fn plain_sql(file: &str) -> String {
    let mut is_for_psql = false;
    let lines = file.split_inclusive('\n').filter(|line| {
        let is_mark = line.starts_with("-- >>> psql") || line.starts_with("-- <<< psql");
        is_for_psql = if is_mark { line.starts_with("-- >>>") } else { is_for_psql };
        !is_for_psql && !is_mark
    });
    lines.collect()
}

/// Prepares a session that reads or extends the log: the tables must be there, of this version and of this cluster, and
/// the planner must use indexes. Call it once on every such connection.
///
/// Every query of this crate reads a few rows at one end of an index. But the tables grow by orders of magnitude between
/// two ANALYZE runs, and a plan made from old statistics would scan a whole table. Plans are generic, because the right
/// plan does not depend on the parameters. A transaction that waits for a lock must see what the holder has committed, whatever
/// the default of the server is. Returns what the tables say of the log.
///
/// # Errors
/// [`Error::SchemaMissing`], [`Error::SchemaVersion`], [`Error::OtherCluster`] or [`Error::Encoding`]: an operator must act,
/// see [`Error::is_final`]. Otherwise Postgres is away.
pub async fn prepare_session(client: &impl Session) -> Result<Identity, Error> {
    let settings = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off;
                    SET plan_cache_mode = force_generic_plan; SET default_transaction_isolation = 'read committed'";
    client.batch_execute(settings).await?;
    let identity = identity(client).await?;
    match identity.schema_version {
        SCHEMA_VERSION if identity.is_of_this_cluster() => Ok(identity),
        SCHEMA_VERSION => {
            Err(Error::OtherCluster { log_cluster: identity.log_cluster, this_cluster: identity.this_cluster })
        }
        found => Err(Error::SchemaVersion { found, wanted: SCHEMA_VERSION }),
    }
}

/// The version of the log's tables, its partitions, the cluster that it belongs to, and the cluster that it is stored in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The version of the tables. 1: they have no table for the version yet. 0: that table is empty.
    pub schema_version: i32,
    /// The cluster whose transaction ids the batches refer to.
    pub log_cluster: i64,
    /// The cluster of this connection.
    pub this_cluster: i64,
    /// The number of partitions; 1 for tables of before version 7.
    pub partitions: PartitionCount,
    /// Random, in the names of the streams. `None`: the log was made without a number of partitions.
    pub log_id: Option<String>,
}

impl Identity {
    /// Whether the log's transaction ids are those of this cluster.
    pub fn is_of_this_cluster(&self) -> bool {
        self.log_cluster == self.this_cluster
    }
}

/// Reads the version and the cluster of the log.
///
/// # Errors
/// [`Error::SchemaMissing`] if the tables do not exist, [`Error::Encoding`] if texts cannot be relied on; otherwise Postgres is away, or the role may not read them.
pub async fn identity(client: &impl Session) -> Result<Identity, Error> {
    let tables = client
        .query_one(
            "-- pglog::identity
             SELECT to_regclass('log_batches') IS NOT NULL, to_regclass('log_identity') IS NOT NULL,
                    (SELECT system_identifier FROM pg_control_system()), getdatabaseencoding()::text,
                    to_regproc('log_partitions') IS NOT NULL",
            &[],
        )
        .await?;
    let (this_cluster, encoding): (i64, &str) = (tables.get(2), tables.get(3));
    if encoding != "UTF8" {
        return Err(Error::Encoding { found: encoding.to_owned() });
    }
    match (tables.get(0), tables.get(1)) {
        (false, _) => return Err(Error::SchemaMissing),
        (true, false) => {
            let (partitions, log_id) = (PartitionCount::ONE, None);
            return Ok(Identity { schema_version: 1, log_cluster: this_cluster, this_cluster, partitions, log_id });
        }
        (true, true) => {}
    }
    let (partitions, log_id) = if tables.get(4) { cut(client).await? } else { (PartitionCount::ONE, None) };
    // If a dump was restored into existing tables, there are two rows. Then the row of the other cluster counts.
    let row = client
        .query_one(
            "-- pglog::identity
             SELECT COALESCE(max(schema_version), 0),
                    COALESCE(min(system_identifier) FILTER (WHERE system_identifier <> $1), $1) FROM log_identity",
            &[&this_cluster],
        )
        .await?;
    Ok(Identity { schema_version: row.get(0), log_cluster: row.get(1), this_cluster, partitions, log_id })
}

/// The number of partitions, and the log's id.
async fn cut(client: &impl Session) -> Result<(PartitionCount, Option<String>), Error> {
    let sql = "-- pglog::cut\nSELECT log_partitions(), (SELECT max(log_id) FROM log_identity)";
    let row = client.query_one(sql, &[]).await?;
    Ok((PartitionCount::new(row.get(0)).unwrap_or(PartitionCount::MAX), row.get(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The schema of the whole pipeline, which contains the lines of `log.sql` between these two.
    const WHOLE_SCHEMA: &str = include_str!("../../../schema.sql");
    const PART_BEGINS: &str = "-- >>> log.sql\n";
    const PART_ENDS: &str = "-- <<< log.sql\n";

    #[test]
    fn the_parts_of_schema_sql_that_are_marked_as_the_logs_are_log_sql() {
        let (_, body) = LOG_SCHEMA.split_once("\n\n").expect("a comment, an empty line, the statements");
        let parts: Vec<&str> = WHOLE_SCHEMA
            .split(PART_BEGINS)
            .skip(1)
            .map(|rest| rest.split_once(PART_ENDS).expect("a part that begins ends").0.trim_end())
            .collect();
        let joined = parts.join("\n\n");
        let differing = body.lines().zip(joined.lines()).find(|(ours, theirs)| ours != theirs);
        assert_eq!(differing, None, "log.sql and schema.sql differ: copy the change");
        assert_eq!(body.trim_end(), joined, "one of log.sql and schema.sql is shorter: copy the change");
    }

    #[test]
    fn log_sql_sets_the_version_of_this_crate() {
        let update =
            format!("UPDATE log_identity SET schema_version = {0} WHERE schema_version < {0};", SCHEMA_VERSION);
        let insert = format!("SELECT system_identifier, {SCHEMA_VERSION}, CASE");
        assert!(LOG_SCHEMA.contains(&update) && LOG_SCHEMA.contains(&insert), "another version than {SCHEMA_VERSION}");
    }
}
