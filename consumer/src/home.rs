//! The tables of consumers that keep their checkpoints and states in a database of their own, and the rows by which the log knows of
//! them.
//!
//! Two databases cannot commit together. So the own one always comes first: a checkpoint moves there, is on disk, and is told to
//! the log a little later. The log's row is a lower bound: the reaper deletes no record that the consumer may still need (I8).

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use deadpool_postgres::{ClientWrapper as Client, Transaction};
use pglog::{Partition, Session};

use crate::advice::Whose;
use crate::bootstrap::{BASELINE, Role, Start, explain, forget_unregistering};
use crate::checkpoint::Registration;
use crate::dead_letter;
use crate::fold::CheckpointKey;
use crate::kind::{Fold, Kind};
use crate::outcome::Interruption;
use crate::own_rows;

/// The text of `home.sql`, which creates these tables and no others.
pub const HOME_SCHEMA: &str = include_str!("../home.sql");

/// Creates the tables where they are missing.
///
/// # Errors
/// Postgres is away, the role may not create tables, or the schema has a log. Nothing was changed.
pub async fn apply_home_schema(client: &impl Session) -> Result<(), tokio_postgres::Error> {
    pglog::apply_schema(client, HOME_SCHEMA, None).await
}

/// Plans use indexes: the tables are small when a session begins. A commit waits for the disk before the log is told of it.
const SETTINGS: &str = "SET enable_seqscan = off; SET jit = off; SET synchronous_commit = on";

/// Connects to the own database of a consumer.
///
/// # Errors
/// Postgres is away, or [`Interruption::Homeless`].
pub(crate) async fn connect(config: &tokio_postgres::Config, name: &str) -> Result<Client> {
    let client = connect::postgres::connect(config, &format!("consumer {name}"), || {}).await;
    let client = client.context("connecting to STATE_DATABASE_URL")?;
    client.batch_execute(SETTINGS).await.context("setting up the session")?;
    let columns = "-- consumer::home::connect
         SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('checkpoints') AND attname = 'token')";
    let row = client.query_one(columns, &[]).await.context("looking for the tables of the state")?;
    ensure!(row.get::<_, bool>(0), Interruption::Homeless);
    Ok(client)
}

/// The rows of a consumer in some partitions, where it has one.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn find_all(
    session: &impl Session,
    name: &str,
    partitions: &[Partition],
) -> Result<BTreeMap<Partition, Registration>> {
    let rows = session
        .query(
            "-- consumer::home::find_all
             SELECT last_offset, generation, fold, fold_version, state::text, partition, token FROM checkpoints
             WHERE name = $1 AND partition = ANY ($2)",
            &[&name, &partitions],
        )
        .await
        .context("loading the checkpoints")?;
    let found = rows.iter().map(|row| (row.get(5), Registration { token: row.get(6), ..Registration::from_row(row) }));
    Ok(found.collect())
}

/// Inserts the row of a new consumer.
///
/// # Errors
/// Postgres is away.
async fn insert(
    tx: &Transaction<'_>,
    fold: &impl Fold,
    key: &CheckpointKey,
    (last_offset, token): (i64, i64),
    state: Option<&str>,
) -> Result<()> {
    tx.execute(
        "-- consumer::home::insert
         INSERT INTO checkpoints (name, partition, last_offset, token, fold, fold_version, state)
         VALUES ($1, $2, $3, $4, $5, $6, $7::text::fold_state)",
        &[&key.name, &key.partition, &last_offset, &token, &fold.id().name, &fold.id().version, &state],
    )
    .await
    .context("registering in the own database")?;
    Ok(())
}

/// Inserts the row of a consumer whose state is in a database of its own.
///
/// # Errors
/// [`Interruption::StaysUnregistered`] if the name was unregistered; otherwise Postgres is away.
pub(crate) async fn insert_bound(
    tx: &Transaction<'_>,
    fold: &impl Fold,
    whose: &Whose,
    partition: Partition,
    role: Role,
) -> Result<()> {
    if matches!(role, Role::Anew(_)) {
        forget_unregistering(tx, &whose.name, partition).await?;
    }
    tx.execute(
        "-- consumer::home::insert_bound
         INSERT INTO checkpoints (name, partition, fold, fold_version, told_token) VALUES ($1, $2, $3, $4, 0)",
        &[&whose.name, &partition, &fold.id().name, &fold.id().version],
    )
    .await
    .map_err(|error| explain(error, fold, whose))?;
    Ok(())
}

/// Where a consumer begins whose state is in a database of its own: the offset, and the state of the reaper's baseline there.
///
/// # Errors
/// [`Interruption::Partial`]; otherwise Postgres is away.
pub(crate) async fn beginning(
    tx: &Transaction<'_>,
    fold: &impl Fold,
    key: &CheckpointKey,
    start: Start,
) -> Result<(i64, Option<String>)> {
    let begins_late = match (start, fold.kind()) {
        (Start::Retained, Kind::State) => return Err(Interruption::Partial { fold: fold.id() }.into()),
        (Start::Baseline, Kind::Rows { may_begin_late, .. }) => may_begin_late,
        (Start::Retained, _) => true,
        (Start::Start | Start::Baseline, _) => false,
    };
    if begins_late {
        let first_retained = pglog::first_retained(tx, key.partition).await.context("asking what is retained")?;
        return Ok((first_retained - 1, None));
    }
    if start != Start::Baseline {
        return Ok((0, None));
    }
    let row = tx
        .query_opt(
            "-- consumer::home::beginning
             SELECT last_offset, state::text FROM checkpoints
             WHERE partition = $1 AND is_baseline AND fold = $2 AND fold_version = $3 AND last_offset > 0 FOR SHARE",
            &[&key.partition, &fold.id().name, &fold.id().version],
        )
        .await
        .context("looking for the baseline")?;
    Ok(row.map_or((0, None), |row| (row.get(0), row.get(1))))
}

/// Inserts the row of a consumer into its own database, with the dead letters of the baseline if it begins with the baseline's state.
///
/// # Errors
/// [`Interruption::Unbound`] and [`Interruption::Unwritable`] if the fold cannot keep its rows; otherwise Postgres is away.
pub(crate) async fn insert_own(
    log: &Transaction<'_>,
    own: &Transaction<'_>,
    fold: &mut impl Fold,
    key: &CheckpointKey,
    place: (i64, i64),
    state: Option<&str>,
) -> Result<()> {
    own_rows::require_bound_tables(own, fold).await?;
    insert(own, fold, key, place, state).await?;
    if fold.kind() == Kind::State && place.0 > 0 {
        dead_letter::carry(log, own, BASELINE, key).await?;
    }
    own_rows::try_statements(own, fold, key).await
}

/// Removes a consumer from its own database, with its state and its dead letters. Returns the partitions that it had there.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn forget(client: &Client, name: &str, partitions: &[Partition]) -> Result<Vec<Partition>> {
    let rows = client
        .query(
            "-- consumer::home::forget
             DELETE FROM checkpoints WHERE name = $1 AND partition = ANY ($2) RETURNING partition",
            &[&name, &partitions],
        )
        .await
        .context("forgetting the state")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Notes the token that the log has today at the offset of a checkpoint.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn renew_token(
    own: &Transaction<'_>,
    key: &CheckpointKey,
    last_offset: i64,
    token: i64,
) -> Result<()> {
    own.execute(
        "-- consumer::home::renew_token
         UPDATE checkpoints SET token = $4 WHERE name = $1 AND partition = $2 AND last_offset = $3",
        &[&key.name, &key.partition, &last_offset, &token],
    )
    .await
    .context("renewing a token")?;
    Ok(())
}

/// Tells the log how far a consumer is for certain: an offset and the token of its batch for each partition. Returns whether it is
/// still registered in all of these partitions.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn tell(
    session: &impl Session,
    name: &str,
    partitions: &[Partition],
    places: &[(i64, i64)],
) -> Result<bool> {
    let (offsets, tokens): (Vec<i64>, Vec<i64>) = places.iter().copied().unzip();
    let told_count = session
        .execute(
            "-- consumer::home::tell
             UPDATE checkpoints AS c SET last_offset = greatest(c.last_offset, new.last_offset), updated_at = now(),
                    told_token = CASE WHEN c.last_offset <= new.last_offset THEN new.token ELSE c.told_token END
             FROM unnest($2::int[], $3::bigint[], $4::bigint[]) AS new (partition, last_offset, token)
             WHERE c.name = $1 AND c.partition = new.partition",
            &[&name, &partitions, &offsets, &tokens],
        )
        .await
        .context("telling the log how far the consumer is")?;
    Ok(told_count == partitions.len() as u64)
}
