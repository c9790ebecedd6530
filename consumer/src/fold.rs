//! The three kinds of folds, as their authors write them. Two of them are pure: they see records and nothing else, so their
//! tests need no server. The third keeps a model outside of Postgres. The loop, written once, does the rest: duplicates, gaps,
//! dead letters, commits, crashes.

use std::fmt;
use std::time::Duration;

use deadpool_postgres::ClientWrapper as Client;
use pglog::{Partition, Record, Session};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

/// Name and version of a fold. Both are stored with the registration of each consumer.
///
/// Raise the version when the state or the rows of earlier records would be others today. A consumer of the old version is
/// then refused by the new program, and a new consumer, which starts at the first record, takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoldId {
    /// Its name, for example `distance`.
    pub name: &'static str,
    /// Its version, from 1 on.
    pub version: i32,
}

impl fmt::Display for FoldId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} version {}", self.name, self.version)
    }
}

/// A fold with one small state, for example a total. Each partition of the log has a state of its own, so a total over the whole
/// log is the sum of the states of all partitions. The state is stored as JSON in the row of the checkpoint, so that one
/// statement moves both (I5).
///
/// The JSON has at most [`STATE_LEN_MAX`] bytes. Write 64-bit numbers that are no amounts, such as digests, as strings:
/// many readers of JSON round large numbers.
pub trait StateFold: Default + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Name and version.
    const ID: FoldId;

    /// Whether records of this kind concern the fold. It passes over the others, and the checkpoint moves on all the same.
    fn takes(&self, object: &str, action: &str) -> bool;

    /// Folds one record into the state.
    ///
    /// # Errors
    /// The record can never apply, whatever else happens. The loop puts it with the dead letters, with this reason. The state
    /// must be as it was before.
    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection>;

    /// The state in a few words, for the log line of a batch, for example `total_distance=5.0m`.
    fn summary(&self) -> String;
}

/// Whose rows a [`RowFold`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsOf {
    /// Each consumer has rows of its own. They are a part of its state, so they are deleted with its registration.
    Each {
        /// The tables. Each must reference `checkpoints (name, partition) ON DELETE CASCADE`: no consumer is registered
        /// otherwise. Rows that stayed after `--unregister` would be counted again by the next consumer of the name.
        tables: &'static [&'static str],
        /// How `--copy-from` copies the rows of one consumer to another. `$1` is the consumer that has them, `$2` the new one
        /// and `$3` the partition.
        copy: &'static str,
    },
    /// All consumers share the rows. Folding a record once more, as a consumer does that begins anew, must leave them as they
    /// are.
    All,
}

/// A fold that turns records into rows. It starts empty ([`Default`]) with each page of records, collects, and says how to write
/// what it has collected. The rows and the checkpoint are written in one transaction (I5).
pub trait RowFold: Default + Send + Sync + 'static {
    /// Name and version.
    const ID: FoldId;

    /// Whose rows they are.
    const ROWS: RowsOf;

    /// Whether a consumer that is started without `--from`, after records were reaped, begins with the oldest record that is
    /// left. This is right only for rows that say themselves which records they reflect. `--from retained` does the same for
    /// every row fold: the operator decides then that the rows may lack the earlier records.
    const MAY_BEGIN_LATE: bool = false;

    /// Whether registrations of before schema version 5, which name no fold, are of this one.
    const OWNS_UNNAMED: bool = false;

    /// Whether records of this kind concern the fold. It passes over the others, and the checkpoint moves on all the same.
    fn takes(&self, object: &str, action: &str) -> bool;

    /// Collects what one record leads to.
    ///
    /// # Errors
    /// The record can never apply, whatever else happens. The loop puts it with the dead letters, with this reason. Nothing may
    /// be collected from it.
    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection>;

    /// The statements that write what was collected, which they take. They run one after another in the transaction that moves
    /// the checkpoint. If Postgres refuses what a row holds, such as a text with NUL or a number that is too large, the record of
    /// that row becomes a dead letter, and the others are written.
    ///
    /// They also run once for an empty page, in the transaction that registers a consumer. So a table or a privilege that is
    /// missing is found before there is a registration, which would hold back the reaper.
    fn statements(&mut self, key: &CheckpointKey) -> Vec<Statement>;
}

/// A fold that keeps a model outside of Postgres, for example documents in Redis. One such fold serves all partitions: it gets
/// page after page, each of one partition. No transaction changes both places, so the
/// model is changed first, and the checkpoint moves after it. The records of a page may be folded again after a crash.
///
/// The model may be lost, or put back to an older state. So the fold keeps in it, beside the data, how far the data is
/// certain. The checkpoint in Postgres is only the lower bound of that: it tells the reaper what is needed no longer (I8).
///
/// Records only say which part of the model is out of date. The fold reads the rest from tables that are never reaped. So a
/// consumer that is registered begins at the head of the log, and builds its model from the tables.
pub trait ModelFold: Send + Sync + 'static {
    /// Name and version.
    const ID: FoldId;

    /// Whether records of this kind concern the fold. It passes over the others.
    fn takes(&self, object: &str, action: &str) -> bool;

    /// A statement that reads the tables of the model, and returns no row. It runs in the transaction that registers a consumer, so
    /// that a missing table is found before there is a registration.
    fn trial(&self) -> Statement;

    /// The checkpoint was loaded, at the start or after a failure. Nothing that was known about the model is certain any more.
    fn doubt(&mut self);

    /// Begins a page of records: forgets what was collected.
    fn begin_page(&mut self);

    /// Collects what one record puts out of date.
    ///
    /// # Errors
    /// The record can never apply, whatever else happens. The loop puts it with the dead letters, with this reason.
    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection>;

    /// Makes the model certain up to the end of the page. It is called for every page, before the checkpoint moves.
    ///
    /// # Errors
    /// A server is away, or does not have what was known about it. The page is folded again.
    fn settle(&mut self, client: &Client, page: PageEnd) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// One bounded unit of upkeep, between two pages. `places` has the place in each partition that the consumer folds. Returns
    /// when the next unit is due: at once, if the time is zero.
    ///
    /// # Errors
    /// As [`settle`](Self::settle).
    fn tend(&mut self, client: &Client, places: &[LogPlace]) -> impl Future<Output = anyhow::Result<Duration>> + Send;
}

/// A consumer's place in the log: the partition and the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPlace {
    /// The partition.
    pub partition: Partition,
    /// The offset of the last record that was folded.
    pub checkpoint: i64,
}

/// The end of a page of records, and the place that it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageEnd {
    /// Where the consumer is until the checkpoint moves.
    pub from: LogPlace,
    /// The offset of the last record.
    pub offset: i64,
    /// The token of its batch.
    pub token: i64,
}

/// The longest state, in bytes of JSON: the limit of the column `checkpoints.state`.
pub const STATE_LEN_MAX: usize = 1500;

/// The primary key of a consumer's row in `checkpoints`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointKey {
    /// The consumer.
    pub name: String,
    /// The partition that it folds.
    pub partition: Partition,
}

/// A statement with its parameters: `Statement::new("INSERT INTO t VALUES ($1, $2)").with(5).with("five")`.
pub struct Statement {
    sql: &'static str,
    params: Vec<Box<dyn ToSql + Sync + Send>>,
    refused_means: &'static str,
}

impl Statement {
    /// An INSERT, UPDATE or DELETE, or a SELECT that calls a function.
    pub fn new(sql: &'static str) -> Self {
        Self { sql, params: Vec::new(), refused_means: "a row is there that must not be" }
    }

    /// Says what it means if a unique key refuses a row.
    #[must_use]
    pub fn refused_means(mut self, meaning: &'static str) -> Self {
        self.refused_means = meaning;
        self
    }

    /// Adds the value of the next parameter.
    #[must_use]
    pub fn with(mut self, value: impl ToSql + Sync + Send + 'static) -> Self {
        self.params.push(Box::new(value));
        self
    }

    /// Runs it.
    ///
    /// # Errors
    /// A [`Rejection`] if Postgres refuses what a row holds, which another attempt does not change. Otherwise Postgres is away,
    /// or refuses the statement.
    pub(crate) async fn execute(&self, session: &impl Session) -> anyhow::Result<()> {
        let params: Vec<&(dyn ToSql + Sync)> =
            self.params.iter().map(|param| &**param as &(dyn ToSql + Sync)).collect();
        let executed = session.execute(self.sql, &params).await;
        executed.map(drop).map_err(|error| {
            if let Some(reason) = refused_content(&error) {
                return Rejection(format!("Postgres refuses its row: {reason}")).into();
            }
            let is_refused = error.code() == Some(&SqlState::UNIQUE_VIOLATION);
            let meaning = if is_refused { self.refused_means } else { "writing the rows of the fold" };
            anyhow::Error::new(error).context(meaning)
        })
    }
}

/// Why Postgres refuses what a row holds; `None` if the reason is another.
fn refused_content(error: &tokio_postgres::Error) -> Option<&str> {
    let error = error.as_db_error()?;
    let code = error.code();
    // Classes 22, data exception, and 54, program limit exceeded, such as JSON that is nested too deep. A row for which the table
    // has no part violates a CHECK too, but one without a name: that is a fault of the table.
    let is_content = code.code().starts_with("22")
        || code.code().starts_with("54")
        || *code == SqlState::NOT_NULL_VIOLATION
        || *code == SqlState::CHECK_VIOLATION && error.constraint().is_some();
    is_content.then(|| error.message())
}

/// Why a record can never apply, for the person who reads the dead letters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejection(pub String);

/// The longest reason that is stored, in characters. A parser may quote 64 KiB.
const REASON_LEN_MAX: usize = 1000;

impl Rejection {
    /// The reason as a text that Postgres stores: without NUL, and bounded.
    pub(crate) fn stored(&self) -> String {
        self.0.chars().take(REASON_LEN_MAX).map(|c| if c == '\0' { char::REPLACEMENT_CHARACTER } else { c }).collect()
    }
}

/// The payload of a record as a struct, for folds whose records must have certain fields. `wanted` names such a payload in the
/// reason of the rejection: `a receipt`.
///
/// # Errors
/// It is no JSON object, or lacks a field. `serde_json` would accept an array for a struct.
pub fn read_object<'a, T: Deserialize<'a>>(record: &Record<'a>, wanted: &str) -> Result<T, Rejection> {
    if !record.data.trim_start().starts_with('{') {
        return Err(Rejection(format!("data is not {wanted}: it is no JSON object")));
    }
    serde_json::from_str(record.data).map_err(|error| Rejection(format!("data is not {wanted}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_reason_can_be_stored() {
        assert_eq!(Rejection("unknown field `a\0b`".to_owned()).stored(), "unknown field `a\u{fffd}b`");
        assert_eq!(Rejection("é".repeat(2000)).stored(), "é".repeat(REASON_LEN_MAX));
    }

    #[test]
    fn an_object_with_the_fields_is_read_and_nothing_else() {
        #[derive(Debug, Deserialize)]
        struct Named {
            name: String,
        }
        let read = |data| {
            let record = Record {
                partition: Partition::FIRST,
                offset: 1,
                token: 1,
                object: "a",
                action: "b",
                data,
                staged_at_us: 0,
                traceparent: None,
            };
            read_object::<Named>(&record, "a name").map(|named| named.name)
        };
        let deep = format!(
            r#"{{"more":{}{},"big":1e400000,"odd":"\ud800","name":"\u0000"}}"#,
            "[".repeat(9999),
            "]".repeat(9999)
        );
        assert_eq!(read(&deep).as_deref(), Ok("\0"), "fields that are not wanted need no meaning");
        for bad in [
            "[\"a\"]",
            "null",
            "7",
            "\"a\"",
            "{}",
            r#"{"name":null}"#,
            r#"{"name":"a","name":"b"}"#,
            r#"{"name":"\ud800"}"#,
        ] {
            let reason = read(bad).unwrap_err().0;
            assert!(reason.starts_with("data is not a name: "), "{bad}: {reason}");
        }
    }
}
