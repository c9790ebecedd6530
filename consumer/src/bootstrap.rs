//! The beginning of a consumer: at the first record, or with a state that another consumer has derived.
//!
//! A copy of a state includes its dead letters, because these records are missing from the state.

use anyhow::{Context, Result, bail, ensure};
use deadpool_postgres::{ClientWrapper as Client, Transaction};
use pglog::{Partition, Session};
use tokio_postgres::error::SqlState;
use tracing::warn;

use crate::advice::Whose;
use crate::checkpoint::{self, Registration};
use crate::dead_letter;
use crate::fold::{CheckpointKey, RowsOf};
use crate::kind::{Fold, Kind};
use crate::outcome::Interruption;
use crate::own_rows;
use crate::registry::Registry;

/// The name under which the reaper keeps the state of the records that it deletes. No other consumer may have it.
pub(crate) const BASELINE: &str = "baseline";

/// The SQLSTATE of the trigger that refuses a name which was unregistered.
const UNREGISTERED: &str = "UNREG";

/// Where a consumer begins when it is registered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Start {
    /// With the state of all reaped records, if the reaper keeps it for this fold. Otherwise at the first record; a history then
    /// begins with the oldest record that is not reaped, and `wallets` at the head.
    #[default]
    Baseline,
    /// At the first record of the log. The history has the reaped ones.
    Start,
    /// At the oldest record that is not reaped. The reaped ones are left out.
    Retained,
}

/// The part that a consumer plays for the reaper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It holds back the reaper.
    Consumer(Start),
    /// The same, for a consumer whose state is elsewhere, also if it was unregistered before.
    Anew(Start),
    /// It is the reaper's own: the state of the records that the reaper deletes.
    Baseline,
}

/// Begins to register consumers in a transaction. Until it ends, the reaper gives up no record.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn begin_registering(tx: &Transaction<'_>) -> Result<()> {
    pglog::hold_reaping(tx).await.context("registering")?;
    // The reaper relies on the registration, so it must survive a crash.
    tx.batch_execute("SET LOCAL synchronous_commit TO DEFAULT").await.context("registering")
}

/// Registers a consumer in one partition, in the transaction that loads it and that has [begun](begin_registering). From the
/// commit on, no record is deleted before the consumer has passed it (I8). After an error the transaction is rolled back, and
/// nothing is registered in any partition.
///
/// # Errors
/// [`Interruption::Gone`] if it would lack records; [`Interruption::Unbound`] and [`Interruption::Unwritable`] if its fold
/// cannot keep its rows; otherwise Postgres is away.
pub(crate) async fn register(
    tx: &Transaction<'_>,
    fold: &mut impl Fold,
    whose: &Whose,
    partition: Partition,
    role: Role,
) -> Result<Registration> {
    let key = &CheckpointKey { name: whose.name.clone(), partition };
    fold.restart();
    // If the row is there, another process of this name was faster. Its row is found below.
    let is_new = insert(tx, fold, whose, partition, role == Role::Baseline).await?;
    if is_new {
        match (role, fold.kind()) {
            (Role::Baseline, _) => begin_baseline(tx, fold, key).await?,
            (Role::Consumer(Start::Baseline), Kind::Model) => begin_at_head(tx, key).await?,
            (Role::Consumer(_), Kind::Model) => return Err(Interruption::OnlyAtHead { fold: fold.id() }.into()),
            (Role::Consumer(Start::Baseline), _) => begin_after_baseline(tx, fold, key).await?,
            (Role::Consumer(Start::Retained), Kind::State) => {
                return Err(Interruption::Partial { fold: fold.id() }.into());
            }
            (Role::Consumer(Start::Retained), _) => leave_out_reaped(tx, key).await?,
            (Role::Consumer(Start::Start) | Role::Anew(_), _) => {}
        }
    }
    let registration = checkpoint::find(tx, key).await?.context("the registration is gone")?;
    if is_new {
        refuse_gaps(tx, fold, whose, partition, registration.checkpoint.last_offset).await?;
    }
    Ok(registration)
}

/// Registers a consumer although it was unregistered before, in each of these partitions where it is not registered: in all of
/// them or in none. Returns the new ones, and their offsets.
///
/// # Errors
/// It is registered in all of them already; otherwise as [`register`].
pub(crate) async fn register_anew(
    client: &mut Client,
    fold: &mut impl Fold,
    whose: &Whose,
    partitions: &[Partition],
    start: Start,
) -> Result<Vec<(Partition, i64)>> {
    let tx = client.transaction().await.context("beginning")?;
    begin_registering(&tx).await?;
    let found = checkpoint::find_all(&tx, &whose.name, partitions).await?;
    ensure!(found.len() < partitions.len(), "consumer {:?} is registered already", whose.name);
    let mut registered = Vec::new();
    for partition in partitions.iter().filter(|partition| !found.contains_key(partition)) {
        forget_unregistering(&tx, &whose.name, *partition).await?;
        let registration = register(&tx, fold, whose, *partition, Role::Consumer(start)).await?;
        registered.push((*partition, registration.checkpoint.last_offset));
    }
    tx.commit().await.context("committing the registration")?;
    Ok(registered)
}

/// Registers a consumer in all of these partitions, or in none, with state, rows, dead letters and checkpoint of `source`. In each
/// partition these are of one offset. Returns the offsets. The fold is that of `source`; if `fold` names one, it must be this.
///
/// # Errors
/// There is no consumer `source` in one of them, it has another fold, or the consumer is registered already in one of them, or
/// Postgres is away.
pub async fn copy(
    client: &mut Client,
    registry: &Registry,
    fold: Option<&str>,
    source: &str,
    (whose, partitions): (&Whose, &[Partition]),
) -> Result<Vec<(Partition, i64)>> {
    let name = &whose.name;
    let tx = client.transaction().await.context("beginning")?;
    begin_registering(&tx).await?;
    let mut copied = Vec::new();
    for partition in partitions {
        let source = CheckpointKey { name: source.to_owned(), partition: *partition };
        let registered = checkpoint::find_all(&tx, &source.name, &[*partition]).await?;
        ensure!(
            registered.values().all(|registration| !registration.is_elsewhere),
            "consumer {:?} keeps its state in a database of its own, and cannot be copied: choose another one",
            source.name
        );
        let mut found = registry.of_consumer(&tx, &source).await?;
        if let Some(wanted) = fold.filter(|wanted| *wanted != found.id().name) {
            bail!("consumer {:?} has fold {}, and not {wanted}", source.name, found.id().name);
        }
        ensure!(
            found.kind() != Kind::Model,
            "consumer {:?} has no state in Postgres to copy: start consumer {name:?} with --fold {}, and it builds its own model",
            source.name,
            found.id().name
        );
        forget_unregistering(&tx, name, *partition).await?;
        if !insert(&tx, &mut found, whose, *partition, false).await? {
            bail!("consumer {name:?} is registered already: run {} first", whose.command(&["--unregister"]));
        }
        let key = CheckpointKey { name: name.clone(), partition: *partition };
        let last_offset = inherit(&tx, &found, &source.name, &key).await?;
        let last_offset =
            last_offset.with_context(|| format!("consumer {:?} has just been unregistered", source.name))?;
        copied.push((*partition, last_offset));
    }
    tx.commit().await.context("committing the copy")?;
    Ok(copied)
}

/// Begins with the baseline's state, if the baseline has this fold and has folded any record.
async fn begin_after_baseline(tx: &Transaction<'_>, fold: &impl Fold, key: &CheckpointKey) -> Result<()> {
    let row = tx
        .query_opt(
            "-- consumer::bootstrap::begin_after_baseline
             SELECT name FROM checkpoints
             WHERE partition = $1 AND is_baseline AND fold = $2 AND fold_version = $3 AND last_offset > 0",
            &[&key.partition, &fold.id().name, &fold.id().version],
        )
        .await
        .context("looking for the baseline")?;
    if let Some(row) = row {
        inherit(tx, fold, row.get(0), key).await?;
    } else if matches!(fold.kind(), Kind::Rows { may_begin_late: true, .. }) {
        leave_out_reaped(tx, key).await?;
    }
    Ok(())
}

/// Gives the new baseline its state. If the first records of the log are gone, the slowest consumer that has a state of this
/// fold here becomes the baseline. Without one, the baseline folds the history.
async fn begin_baseline(tx: &Transaction<'_>, fold: &impl Fold, key: &CheckpointKey) -> Result<()> {
    if pglog::first_retained(tx, key.partition).await.context("asking what is retained")? == 1 {
        return Ok(());
    }
    let row = tx
        .query_opt(
            "-- consumer::bootstrap::begin_baseline
             SELECT name FROM checkpoints
             WHERE partition = $1 AND NOT is_baseline AND told_token IS NULL AND fold = $2 AND fold_version = $3
             ORDER BY last_offset, name LIMIT 1",
            &[&key.partition, &fold.id().name, &fold.id().version],
        )
        .await
        .context("looking for the slowest consumer")?;
    if let Some(row) = row {
        inherit(tx, fold, row.get(0), key).await?;
    }
    Ok(())
}

/// Begins after the newest record. The model is built from tables that hold the effects of all earlier ones.
async fn begin_at_head(tx: &Transaction<'_>, key: &CheckpointKey) -> Result<()> {
    let head = pglog::head(tx, key.partition).await.context("asking for the head")?;
    move_new(tx, key, head).await
}

/// Begins with the oldest record that is not reaped.
async fn leave_out_reaped(tx: &Transaction<'_>, key: &CheckpointKey) -> Result<()> {
    let first_retained = pglog::first_retained(tx, key.partition).await.context("asking what is retained")?;
    if first_retained > 1 {
        warn!(
            consumer = key.name,
            first_retained, "the consumer leaves out the records before this offset: they are reaped"
        );
    }
    move_new(tx, key, first_retained - 1).await
}

/// Refuses a consumer that would need a record that is gone: it would stop there, and hold back the reaper.
pub(crate) async fn refuse_gaps(
    tx: &Transaction<'_>,
    fold: &impl Fold,
    whose: &Whose,
    partition: Partition,
    last_offset: i64,
) -> Result<()> {
    let first_retained = pglog::first_retained(tx, partition).await.context("asking what is retained")?;
    if last_offset + 1 >= first_retained {
        return Ok(());
    }
    let row = tx
        .query_one(
            "-- consumer::bootstrap::refuse_gaps
             SELECT EXISTS (SELECT FROM history_ranges
                            WHERE partition = $1 AND first_offset <= $2 AND last_offset >= $3)",
            &[&partition, &(last_offset + 1), &(first_retained - 1)],
        )
        .await
        .context("looking for reaped records in the history")?;
    let is_whole: bool = row.get(0);
    let (whose, fold) = (whose.clone(), fold.id());
    ensure!(is_whole, Interruption::Gone { whose, partition, fold, last_offset, first_retained });
    Ok(())
}

/// Allows to register a name that was unregistered.
pub(crate) async fn forget_unregistering(tx: &Transaction<'_>, name: &str, partition: Partition) -> Result<()> {
    tx.execute(
        "-- consumer::bootstrap::forget_unregistering
         DELETE FROM unregistered_consumers WHERE name = $1 AND partition = $2",
        &[&name, &partition],
    )
    .await
    .context("forgetting that the consumer was unregistered")?;
    Ok(())
}

/// Inserts the consumer's row, with the first state of its fold. Returns whether it was not there before.
///
/// # Errors
/// [`Interruption::StaysUnregistered`] if the name was unregistered; otherwise as [`register`].
async fn insert(
    tx: &Transaction<'_>,
    fold: &mut impl Fold,
    whose: &Whose,
    partition: Partition,
    is_baseline: bool,
) -> Result<bool> {
    own_rows::require_bound_tables(tx, fold).await?;
    let inserted_count = tx
        .execute(
            "-- consumer::bootstrap::insert
             INSERT INTO checkpoints (name, partition, is_baseline, fold, fold_version, state)
             VALUES ($1, $2, $3, $4, $5, $6::text::fold_state) ON CONFLICT DO NOTHING",
            &[&whose.name, &partition, &is_baseline, &fold.id().name, &fold.id().version, &fold.state()?],
        )
        .await
        .map_err(|error| explain(error, fold, whose))?;
    own_rows::try_statements(tx, fold, &CheckpointKey { name: whose.name.clone(), partition }).await?;
    Ok(inserted_count == 1)
}

/// The error of a registration that Postgres refuses.
pub(crate) fn explain(error: tokio_postgres::Error, fold: &impl Fold, whose: &Whose) -> anyhow::Error {
    match error.code().map(SqlState::code) {
        Some(UNREGISTERED) => Interruption::StaysUnregistered { whose: whose.clone(), fold: fold.id() }.into(),
        _ => anyhow::Error::new(error).context("registering"),
    }
}

/// Copies state, rows, dead letters and checkpoint of `source` to a consumer that is registered at offset 0. Returns the offset;
/// `None`, with nothing done, if there is no `source`.
async fn inherit(tx: &Transaction<'_>, fold: &impl Fold, source: &str, key: &CheckpointKey) -> Result<Option<i64>> {
    let CheckpointKey { name, partition } = key;
    // Each of the statements that follow has a snapshot of its own. The lock keeps the source from committing in between,
    // so that checkpoint, rows and dead letters are of one offset.
    let row = tx
        .query_opt(
            "-- consumer::bootstrap::inherit
             SELECT last_offset FROM checkpoints
             WHERE name = $1 AND partition = $2 AND name <> $3 AND fold = $4 AND fold_version = $5
               AND told_token IS NULL FOR SHARE",
            &[&source, partition, name, &fold.id().name, &fold.id().version],
        )
        .await
        .context("looking for the consumer to copy")?;
    let Some(row) = row else { return Ok(None) };
    if let Kind::Rows { of: RowsOf::Each { copy, .. }, .. } = fold.kind() {
        tx.execute(copy, &[&source, name, partition]).await.context("copying the rows")?;
    }
    dead_letter::copy(tx, source, name, *partition).await?;
    tx.execute(
        "-- consumer::bootstrap::inherit
         UPDATE checkpoints SET state = (SELECT state FROM checkpoints WHERE name = $3 AND partition = $2)
         WHERE name = $1 AND partition = $2",
        &[name, partition, &source],
    )
    .await
    .context("copying the state")?;
    move_new(tx, key, row.get(0)).await?;
    Ok(Some(row.get(0)))
}

async fn move_new(tx: &Transaction<'_>, key: &CheckpointKey, last_offset: i64) -> Result<()> {
    let moved_count = tx
        .execute(
            "-- consumer::bootstrap::move_new
             UPDATE checkpoints SET last_offset = $3 WHERE name = $1 AND partition = $2 AND last_offset = 0",
            &[&key.name, &key.partition, &last_offset],
        )
        .await
        .context("moving the new checkpoint")?;
    ensure!(moved_count == 1, "consumer {:?} has begun already", key.name);
    Ok(())
}
