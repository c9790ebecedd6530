//! Dead letters: records that concern a fold and can never apply. They are kept for a person, and can be replayed with a
//! corrected fold.

use anyhow::{Context, Result, ensure};
use deadpool_postgres::{ClientWrapper as Client, Transaction};
use pglog::{Partition, Partitions, Record, Session};
use tokio_postgres::Row;

use crate::advice::Whose;
use crate::checkpoint;
use crate::fold::{CheckpointKey, Rejection};
use crate::kind::{Fold, Kind};
use crate::registry::{Claim, claim};

/// The result of [`replay`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replay {
    /// The record is folded, and its dead letter is deleted.
    Applied,
    /// The fold still rejects the record. The dead letter has the new reason.
    Rejected(Rejection),
    /// There is no such dead letter: perhaps it was replayed before.
    NotThere,
}

/// Copies the dead letters of one consumer to another that has none.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn copy(tx: &Transaction<'_>, source: &str, name: &str, partition: Partition) -> Result<()> {
    tx.execute(
        "-- consumer::dead_letter::copy
         INSERT INTO dead_letters (name, partition, record_offset, object, action, data, reason, created_at, dropped_at)
         SELECT $2, partition, record_offset, object, action, data, reason, created_at, dropped_at
         FROM dead_letters WHERE name = $1 AND partition = $3",
        &[&source, &name, &partition],
    )
    .await
    .context("copying the dead letters")?;
    Ok(())
}

/// Carries the dead letters of a consumer into another database, to a consumer that has none there.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn carry(
    from: &Transaction<'_>,
    to: &Transaction<'_>,
    source: &str,
    key: &CheckpointKey,
) -> Result<()> {
    let letters = from
        .query_one(
            "-- consumer::dead_letter::carry
             SELECT COALESCE(json_agg(letter), '[]')::text FROM (
                 SELECT partition, record_offset, object, action, data, reason, created_at, dropped_at
                 FROM dead_letters WHERE name = $1 AND partition = $2) AS letter",
            &[&source, &key.partition],
        )
        .await
        .context("reading the dead letters")?;
    to.execute(
        "-- consumer::dead_letter::carry
         INSERT INTO dead_letters (name, partition, record_offset, object, action, data, reason, created_at, dropped_at)
         SELECT $1, letter.* FROM json_to_recordset($2::text::json)
             AS letter (partition INT, record_offset BIGINT, object TEXT, action TEXT, data TEXT, reason TEXT,
                        created_at TIMESTAMPTZ, dropped_at TIMESTAMPTZ)",
        &[&key.name, &letters.get::<_, &str>(0)],
    )
    .await
    .context("copying the dead letters")?;
    Ok(())
}

/// Folds a dead letter, with a fold that can apply it now. The digest is the same as if the record had been folded at its
/// offset.
///
/// One transaction locks the checkpoint's row, so that no process commits a state in between. Then it loads the state,
/// applies the record, saves the state or the rows, deletes the dead letter and raises the generation. A consumer that runs
/// meanwhile holds a state without the record. The raised generation keeps it from saving that state, and it loads again. A
/// second replay of the same dead letter waits for the lock, and then finds none.
///
/// The record's token and `staged_at_us` are 0: dead letters do not have them.
///
/// # Errors
/// There is no such consumer, it has another fold, or Postgres is away. Nothing is changed.
pub async fn replay<F: Fold>(
    client: &mut Client,
    fold: &mut F,
    name: &str,
    partition: Partition,
    offset: i64,
) -> Result<Replay> {
    let key = CheckpointKey { name: name.to_owned(), partition };
    ensure!(
        fold.kind() != Kind::Model,
        "fold {} reads its model from tables, with the effects of this record: there is nothing to replay. Drop the dead letter",
        fold.id()
    );
    let tx = client.transaction().await.context("beginning")?;
    let registration = checkpoint::lock(&tx, &key).await?;
    let registration =
        registration.with_context(|| format!("no consumer {name:?} is registered in partition {partition}"))?;
    let whose = Whose { name: name.to_owned(), partitions: Partitions::All };
    if claim(&whose, registration.fold.as_ref(), fold)? == Claim::Unclaimed {
        checkpoint::note_fold(&tx, fold.id(), &key).await?;
    }
    let Some(row) = find(&tx, name, partition, offset).await? else { return Ok(Replay::NotThere) };
    let (object, action, data) = (row.get(0), row.get(1), row.get(2));
    let record = Record { partition, offset, token: 0, object, action, data, staged_at_us: 0, traceparent: None };
    fold.restore(registration.state.as_deref())?;
    fold.begin_page();
    let applied = if fold.takes(record.object, record.action) {
        fold.apply(&record)
    } else {
        Err(Rejection(format!("the fold takes no {} {}", record.object, record.action)))
    };
    let changed_count = match &applied {
        Ok(()) => {
            if let Err(error) = save(&tx, fold, &key).await {
                // Postgres refuses what its row holds, and has aborted the transaction: the dead letter stays as it is.
                let rejection: Rejection = error.downcast()?;
                tx.rollback().await.context("rolling back the replay")?;
                return Ok(Replay::Rejected(rejection));
            }
            tx.execute(
                "-- consumer::dead_letter::replay
                 DELETE FROM dead_letters WHERE name = $1 AND partition = $2 AND record_offset = $3",
                &[&name, &partition, &offset],
            )
            .await
        }
        Err(rejection) => {
            tx.execute(
                "-- consumer::dead_letter::replay
                 UPDATE dead_letters SET reason = $4 WHERE name = $1 AND partition = $2 AND record_offset = $3",
                &[&name, &partition, &offset, &rejection.stored()],
            )
            .await
        }
    }
    .context("changing the dead letter")?;
    ensure!(changed_count == 1, "the dead letter at offset {offset} has gone meanwhile");
    tx.commit().await.context("committing the replay")?;
    Ok(applied.map_or_else(Replay::Rejected, |()| Replay::Applied))
}

async fn find(tx: &Transaction<'_>, name: &str, partition: Partition, offset: i64) -> Result<Option<Row>> {
    tx.query_opt(
        "-- consumer::dead_letter::find
         SELECT object, action, data FROM dead_letters
         WHERE name = $1 AND partition = $2 AND record_offset = $3",
        &[&name, &partition, &offset],
    )
    .await
    .context("reading the dead letter")
}

/// Writes the rows and the state. The raised generation makes a running consumer load its state again: the state that it holds
/// is not the committed one any more.
async fn save(tx: &Transaction<'_>, fold: &mut impl Fold, key: &CheckpointKey) -> Result<()> {
    for statement in fold.statements(key) {
        statement.execute(tx).await?;
    }
    let raised_count = tx
        .execute(
            "-- consumer::dead_letter::save
             UPDATE checkpoints SET generation = generation + 1, state = COALESCE($3::text::fold_state, state)
             WHERE name = $1 AND partition = $2",
            &[&key.name, &key.partition, &fold.state()?],
        )
        .await
        .context("saving the state")?;
    ensure!(raised_count == 1, "the checkpoint of {:?} is gone", key.name);
    Ok(())
}
