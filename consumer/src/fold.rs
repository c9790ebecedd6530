//! The interface between a consumer's loop, which is written once, and the states that can be derived from the log.

use anyhow::{Context, Result, ensure};
use deadpool_postgres::Transaction;
use pglog::{Partition, Record, Session};
use tokio_postgres::types::ToSql;

/// Something derived from the log, one record after another.
///
/// The loop calls [`load`](Fold::load) once, then [`apply`](Fold::apply) for each record in offset order, and
/// [`save`](Fold::save) in the transaction that also moves the checkpoint: both are committed or neither (I5). When that
/// transaction fails, the loop loads again, which undoes every `apply` since. A fold whose state is one row gives an
/// [`update`](Fold::update) and needs no `save`: one statement then writes checkpoint and state, which is the fastest way.
///
/// Effects outside the transaction (an e-mail, a file) do not belong here. They would happen again after a crash.
pub trait Fold: Send + Sync {
    /// Whether records of this kind concern the fold. It passes over the others, and the checkpoint moves on all the same.
    fn takes(&self, object: &str, action: &str) -> bool;

    /// Reads the state that was committed with the checkpoint. Sets the state up when a consumer starts for the first time.
    ///
    /// # Errors
    /// Postgres is away. The loop tries again.
    fn load(
        &mut self,
        tx: &Transaction<'_>,
        consumer: &str,
        partition: Partition,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Folds one record into the state in memory.
    ///
    /// # Errors
    /// The record can never apply, whatever else happens. The loop puts it with the dead letters, with this reason. The state
    /// must be as it was before.
    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection>;

    /// The statement that writes the whole state, if the state is one row. The loop uses it wherever one statement can commit a
    /// page. It still calls [`save`](Fold::save) for pages with dead letters, and for the baseline.
    fn update(&self) -> Option<Update<'_>> {
        None
    }

    /// Writes the state, in the transaction that moves the checkpoint. Checks its own row counts, and never commits. Its first
    /// statement is sent together with BEGIN and the checkpoint, so a fold that saves with one statement costs no round
    /// trip. The default runs the fold's [`update`](Fold::update).
    ///
    /// # Errors
    /// Postgres is away. The loop loads the last committed state and tries again.
    fn save(
        &mut self,
        tx: &impl Session,
        consumer: &str,
        partition: Partition,
    ) -> impl Future<Output = Result<()>> + Send {
        async move {
            let Update { sql, params } =
                self.update().context("the fold says neither how to update nor how to save")?;
            let key: [&(dyn ToSql + Sync); 2] = [&consumer, &partition];
            let saved_count = tx.execute(sql, &[&key, params.as_slice()].concat()).await.context("saving the state")?;
            ensure!(saved_count == 1, "the state of consumer {consumer} is gone");
            Ok(())
        }
    }

    /// Copies the state of the consumer `source` to `consumer`, which has none yet, so that it can start with a state that
    /// another consumer has derived. Never commits. `Ok(false)`, with nothing done, if `source` has no state. The default
    /// returns this too: without a copy a consumer starts at offset 0.
    ///
    /// # Errors
    /// Postgres is away.
    fn copy(
        &self,
        _tx: &Transaction<'_>,
        _source: &str,
        _consumer: &str,
        _partition: Partition,
    ) -> impl Future<Output = Result<bool>> + Send {
        async { Ok(false) }
    }

    /// The state in a few words, for the log line of a batch, for example `total_distance=5.0m`.
    fn summary(&self) -> String;
}

/// A statement that writes the state of a fold whose state is one row.
pub struct Update<'a> {
    /// `UPDATE … SET … WHERE …` of one table, not of a view, without FROM. The loop adds conditions with AND, so it must end
    /// neither with an OR condition nor with a comment. The loop also reads `ctid`, so the role needs SELECT on the whole
    /// table. `$1` is the consumer's name and `$2` its partition.
    pub sql: &'static str,
    /// The values of `$3` and the parameters after it.
    pub params: Vec<&'a (dyn ToSql + Sync)>,
}

/// Why a record can never apply, for the person who reads the dead letters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejection(pub String);
