//! What streamer and reaper need to know of the consumers: where the slowest one is (I8).

use deadpool_postgres::Transaction;

use crate::Error;
use crate::session::Session;

/// Held shared by a consumer that registers and exclusively by the reaper, so that no record is given up in the moment
/// in which a consumer that needs it appears.
const REGISTRATION_LOCK: i64 = 7_306_930_022;

/// The lowest checkpoint of all consumers registered in `partition`, `None` if there is no consumer. The baseline, which
/// only follows the others, does not count.
///
/// # Errors
/// Postgres is away.
pub async fn lowest_checkpoint(client: &impl Session, partition: i32) -> Result<Option<i64>, Error> {
    let row = client
        .query_one(
            "-- pglog::lowest_checkpoint
             SELECT min(last_offset) FROM checkpoints WHERE partition = $1 AND NOT is_baseline",
            &[&partition],
        )
        .await?;
    Ok(row.get(0))
}

/// Taken by a consumer that registers: until its transaction ends, the reaper gives up no record. Consumers do not keep
/// each other waiting.
///
/// # Errors
/// Postgres is away, or the reaper held the lock for longer than the session's `lock_timeout`: try again.
pub async fn hold_reaping(tx: &Transaction<'_>) -> Result<(), Error> {
    tx.execute(
        "-- pglog::hold_reaping
         SELECT pg_advisory_xact_lock_shared($1)",
        &[&REGISTRATION_LOCK],
    )
    .await?;
    Ok(())
}

/// Taken by the reaper: until its transaction ends, no consumer registers.
///
/// # Errors
/// Postgres is away, or a registration took longer than the session's `lock_timeout`: try again.
pub async fn hold_registration(tx: &impl Session) -> Result<(), Error> {
    tx.execute(
        "-- pglog::hold_registration
         SELECT pg_advisory_xact_lock($1)",
        &[&REGISTRATION_LOCK],
    )
    .await?;
    Ok(())
}
