//! The log as Postgres holds it.
//!
//! A record is *staged* in the transaction that makes it true. Later a leader cuts the staged rows into *batches* and so
//! gives each record its *offset*, once. From then on any client can read the record at an offset, as often as needed.
//!
//! ```text
//! stage (any client) ──▶ staged_log_records ──assign (leader)──▶ log_batches ──Reader (any client)──▶ Record { offset, … }
//! ```
//!
//! The reaper deletes old records here. A consumer with the fold `history` archives them before, and [`WholeReader`] reads
//! them from there.
//!
//! The tables are those of `log.sql`, which a service can apply alone: [`apply_log_schema`].
//!
//! A batch is the set of rows visible in its snapshot and not in the previous batch's snapshot, ordered by id. A
//! transaction that ended before a snapshot was taken stays committed or aborted, and staged rows are never updated. So the
//! same two snapshots always select the same rows in the same order, and an offset needs no column: it is counted (I2).
//! Ids may commit in any order (I3).
//!
//! Source: the snapshot batches of PgQ (Skytools), <https://wiki.postgresql.org/wiki/PGQ_Tutorial>.
//!
//! Used by streamer, consumer, reaper, operator and the tests. It knows neither Redis nor the meaning of the records.

mod batch;
mod checkpoint;
mod cut;
mod lag;
mod partition;
mod reader;
mod reap;
mod record;
mod schema;
mod session;
mod stage;
mod whole;

pub use batch::{
    Batch, BatchRange, LEADER_LOCK, MEMBER_LOCK, batch_ranges, first_retained, head, heads, is_anything_staged,
    marked_head, marked_heads, token_at, tokens_at,
};
pub use checkpoint::{hold_reaping, hold_registration, lowest_checkpoint};
pub use cut::{Cut, Cutter, Cutters, assign};
pub use lag::{Lag, Place, lag, lags};
pub use partition::{NoPartition, NoPartitions, Partition, PartitionCount, Partitions, UnknownPartition};
pub use reader::Reader;
pub use reap::{ReapedCounts, reap, reapable};
pub use record::{Page, Record, micros_since_1970, time_of_micros};
pub use schema::{Identity, LOG_SCHEMA, SCHEMA_VERSION, apply_log_schema, apply_schema, identity, prepare_session};
pub use session::{Params, Session};
pub use stage::{HINT_CHANNEL, NewRecord, hint, listen, stage};
pub use whole::{WholeReader, history_page};

/// Why the log cannot be read or extended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The record was deleted after every registered consumer had passed it. Start from another consumer's state, or read
    /// the record from the history.
    #[error(
        "records before offset {first_retained} of partition {partition} are reaped, and {offset} was asked for{}",
        history_hint(*is_archive_read)
    )]
    Reaped {
        /// The partition that was read.
        partition: Partition,
        /// The offset that was asked for.
        offset: i64,
        /// The lowest offset that can still be read.
        first_retained: i64,
        /// Whether the history was read too, and does not have the record.
        is_archive_read: bool,
    },
    /// The offset was never given to a record.
    #[error("offset {offset} of partition {partition} is not assigned: the head is {head}")]
    Unassigned {
        /// The partition that was read.
        partition: Partition,
        /// The offset that was asked for.
        offset: i64,
        /// The highest assigned offset, 0 if there is none.
        head: i64,
    },
    /// Rows of a batch are missing although the batch is not reaped. Stop: reading on would shift every later offset.
    #[error(
        "batch {first_offset} of partition {partition} has {record_count} records, but only {found_count} are there"
    )]
    RowsMissing {
        /// The partition that was read.
        partition: Partition,
        /// The batch's first offset.
        first_offset: i64,
        /// How many records the batch was written with.
        record_count: i64,
        /// How many were found.
        found_count: i64,
    },
    /// The reader stands in a batch that this log does not have: Postgres was put back to an older state, or a standby that
    /// lacked the batch was promoted, and another batch has its offsets now. Read anew from an offset that is known to be of
    /// this log. Nothing is damaged.
    #[error(
        "the batch at offset {first_offset} of partition {partition} was replaced: Postgres was put back to an older state"
    )]
    Replaced {
        /// The partition that was read.
        partition: Partition,
        /// The first offset of the batch that the reader knows.
        first_offset: i64,
    },
    /// The log was restored here from another cluster's dump, or pg_upgrade created this cluster. The batches refer to
    /// transaction ids that belong to other transactions here.
    #[error(
        "the log belongs to the cluster {log_cluster}, and this is the cluster {this_cluster}: it was restored from a dump, or upgraded. Run `adopt` once, then start this again"
    )]
    OtherCluster {
        /// `system_identifier` of the cluster that the log belongs to.
        log_cluster: i64,
        /// `system_identifier` of the cluster that the log is stored in.
        this_cluster: i64,
    },
    /// The transaction counter is behind the log, although the log names this cluster as its own. A dump was restored into
    /// a physical copy of its cluster, or the log is older than the table that names the cluster.
    #[error(
        "the newest batch of partition {partition} was written at transaction {batch_xmax}, but this cluster is only at {cluster_xmax}: the tables were restored here from a dump. Stop streamers and consumers, run `adopt --force` once, then start them again"
    )]
    TransactionsStartedOver {
        /// The partition.
        partition: Partition,
        /// `pg_snapshot_xmax` of the newest batch.
        batch_xmax: String,
        /// `pg_snapshot_xmax` of the current snapshot.
        cluster_xmax: String,
    },
    /// The database does not store UTF-8: one row that is no UTF-8 would stop every reader.
    #[error(
        "the database has the encoding {found}, and the log needs UTF8: move it into a database that was made by CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0 (docs/RESTORE.md, A database in another encoding)"
    )]
    Encoding {
        /// The encoding of the database.
        found: String,
    },
    /// Tables and program are of different versions.
    #[error("the tables are of version {found}, and this program needs version {wanted}: {}", version_hint(*found, *wanted))]
    SchemaVersion {
        /// The version of the tables.
        found: i32,
        /// The version of the program.
        wanted: i32,
    },
    /// The database has no log.
    #[error("the tables are missing: apply schema.sql, for example with `psql \"$DATABASE_URL\" -f schema.sql`")]
    SchemaMissing,
    /// Postgres refused the query or could not be reached. Nothing was changed; try again.
    #[error("query failed")]
    Postgres(#[from] tokio_postgres::Error),
}

impl Error {
    /// Whether a retry cannot help, because an operator must first do what the text says. [`Error::Reaped`] is not among
    /// these errors: a streamer skips reaped records, while a consumer cannot.
    pub fn is_final(&self) -> bool {
        match self {
            Self::RowsMissing { .. }
            | Self::OtherCluster { .. }
            | Self::TransactionsStartedOver { .. }
            | Self::Encoding { .. }
            | Self::SchemaVersion { .. }
            | Self::SchemaMissing => true,
            Self::Reaped { .. } | Self::Unassigned { .. } | Self::Replaced { .. } | Self::Postgres(_) => false,
        }
    }
}

fn history_hint(is_archive_read: bool) -> &'static str {
    if is_archive_read { ". The history does not have it: see `SELECT * FROM history_ranges`" } else { "" }
}

fn version_hint(found: i32, wanted: i32) -> &'static str {
    if found < wanted {
        "apply schema.sql, for example with `psql \"$DATABASE_URL\" -f schema.sql`"
    } else {
        "upgrade the program"
    }
}
