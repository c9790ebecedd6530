//! What a consumer does with records: the one interface between the loop, which is written once, and the many things
//! that can be derived from a log.

use anyhow::{Context, Result, ensure};
use deadpool_postgres::Transaction;
use pglog::{Record, Session};
use tokio_postgres::types::ToSql;

/// Something derived from the log, one record after another.
///
/// The loop calls [`load`](Fold::load) once, then [`apply`](Fold::apply) for each record in offset order, and
/// [`save`](Fold::save) in the transaction that also moves the checkpoint: both are committed or neither (I5). When that
/// transaction fails, the loop loads again: what `apply` did in memory since is forgotten. A fold whose state is one row
/// gives an [`update`](Fold::update) and needs no `save`: checkpoint and state are then one statement, which is the fastest.
///
/// Effects outside of the transaction (an e-mail, a file) do not belong here: they would happen again after a crash.
pub trait Fold: Send + Sync {
    /// Whether records of this kind concern the fold. Others are passed over; the checkpoint moves on all the same.
    fn takes(&self, object: &str, action: &str) -> bool;

    /// Reads the state that was committed with the checkpoint; the state of a consumer's first start is set up here too.
    ///
    /// # Errors
    /// Postgres is away; the loop tries again.
    fn load(&mut self, tx: &Transaction<'_>, consumer: &str, partition: i32)
    -> impl Future<Output = Result<()>> + Send;

    /// Folds one record into the state in memory.
    ///
    /// # Errors
    /// The record can never apply, whatever else happens: it goes to the dead letters with this reason, and the state
    /// must be as it was before.
    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection>;

    /// The statement that writes the whole state, if it is one row and nothing has to be done beside it. It is used wherever
    /// a page is committed at once; [`save`](Fold::save) is still called for dead letters and by the baseline.
    fn update(&self) -> Option<Update<'_>> {
        None
    }

    /// Writes the state, in the transaction that moves the checkpoint. Checks its own row counts, and never commits. What
    /// it sends first goes out together with BEGIN and the checkpoint: a fold that saves with one statement costs no round
    /// trip. Unless the fold says how, this runs its [`update`](Fold::update).
    ///
    /// # Errors
    /// Postgres is away; the loop loads the last committed state and tries again.
    fn save(&mut self, tx: &impl Session, consumer: &str, partition: i32) -> impl Future<Output = Result<()>> + Send {
        async move {
            let Update { sql, params } =
                self.update().context("the fold says neither how to update nor how to save")?;
            let whose: [&(dyn ToSql + Sync); 2] = [&consumer, &partition];
            let saved_count =
                tx.execute(sql, &[&whose, params.as_slice()].concat()).await.context("saving the state")?;
            ensure!(saved_count == 1, "the state of consumer {consumer} is gone");
            Ok(())
        }
    }

    /// Copies the state that is kept under one name to another, where nothing is yet, so that a consumer can start with
    /// what somebody else has derived. `Ok(false)`, and nothing done, if there is no state under `source`; also what a
    /// fold answers that keeps no states by name: its consumers start at offset 0. Never commits.
    ///
    /// # Errors
    /// Postgres is away.
    fn copy(
        &self,
        _tx: &Transaction<'_>,
        _source: &str,
        _consumer: &str,
        _partition: i32,
    ) -> impl Future<Output = Result<bool>> + Send {
        async { Ok(false) }
    }

    /// The state in a few words, for the log line of a batch, for example `total_distance=5.0m`.
    fn summary(&self) -> String;
}

/// A statement that writes the state of a fold, which is one row.
pub struct Update<'a> {
    /// `UPDATE … SET … WHERE …` of one table, which is no view, without FROM. The loop adds conditions with AND, so without
    /// OR at the end, or a comment; and it asks for `ctid`, so the role needs SELECT on the whole table. `$1` is the
    /// consumer's name and `$2` its partition.
    pub sql: &'static str,
    /// What `$3` and those that follow stand for.
    pub params: Vec<&'a (dyn ToSql + Sync)>,
}

/// Why a record can never apply. For a human who reads the dead letters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejection(pub String);
