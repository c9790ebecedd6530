//! The tables of a fold, before a consumer of the fold is registered.
//!
//! A consumer that is registered and cannot use them holds back the reaper. Rows that outlive their registration are folded into
//! once more by the next consumer of the name. So both are looked for first.

use anyhow::{Context, Result};
use deadpool_postgres::Transaction;

use crate::fold::{CheckpointKey, RowsOf};
use crate::kind::{Fold, Kind};
use crate::outcome::Interruption;

/// Requires that Postgres deletes the rows of a consumer together with its registration.
///
/// # Errors
/// [`Interruption::Unbound`]: it does not, or a table is missing.
pub(crate) async fn require_bound_tables(tx: &Transaction<'_>, fold: &impl Fold) -> Result<()> {
    let Kind::Rows { of: RowsOf::Each { tables, .. }, .. } = fold.kind() else { return Ok(()) };
    let row = tx
        .query_opt(
            "-- consumer::own_rows::require_bound_tables
             SELECT name FROM unnest($1::text[]) WITH ORDINALITY AS needed (name, place)
             WHERE NOT EXISTS (SELECT FROM pg_constraint
                               WHERE conrelid = to_regclass(name) AND confrelid = to_regclass('checkpoints')
                                 AND contype = 'f' AND confdeltype = 'c' AND convalidated)
             ORDER BY place LIMIT 1",
            &[&tables],
        )
        .await
        .context("looking at the tables of the fold")?;
    match row {
        Some(row) => Err(Interruption::Unbound { fold: fold.id(), table: row.get(0) }.into()),
        None => Ok(()),
    }
}

/// Runs the statements that try the tables of the fold, and takes back their effects.
///
/// # Errors
/// [`Interruption::Unwritable`]: a table or a privilege is missing.
pub(crate) async fn try_statements(tx: &Transaction<'_>, fold: &mut impl Fold, key: &CheckpointKey) -> Result<()> {
    let statements = fold.trial(key);
    if statements.is_empty() {
        return Ok(());
    }
    tx.batch_execute("SAVEPOINT trial").await.context("beginning the trial")?;
    for statement in statements {
        if let Err(error) = statement.execute(tx).await {
            return Err(Interruption::refused(fold.id(), error));
        }
    }
    tx.batch_execute("ROLLBACK TO SAVEPOINT trial").await.context("ending the trial")
}
