//! The consumers' checkpoints, as far as streamer and reaper need them: the lowest, and when none may be added (I8).

use deadpool_postgres::Transaction;

use crate::Error;
use crate::partition::Partition;
use crate::session::Session;

/// A consumer that registers holds this lock shared, and the reaper holds it exclusively. Otherwise the reaper could give
/// up a record while a consumer that needs it registers. The function `log_key` makes it a lock of this log alone.
const REGISTRATION_LOCK: i64 = 7_306_930_022;

/// The lowest checkpoint of all consumers registered in `partition`; `None` if no consumer is registered. The baseline does
/// not count: it follows the consumers.
///
/// # Errors
/// Postgres is away.
pub async fn lowest_checkpoint(client: &impl Session, partition: Partition) -> Result<Option<i64>, Error> {
    let row = client
        .query_one(
            "-- pglog::lowest_checkpoint
             SELECT min(last_offset) FROM checkpoints WHERE partition = $1 AND NOT is_baseline",
            &[&partition],
        )
        .await?;
    Ok(row.get(0))
}

/// Called by a consumer that registers: until its transaction ends, the reaper gives up no record. Several consumers can
/// register at the same time.
///
/// # Errors
/// Postgres is away, or the reaper held the lock for longer than the session's `lock_timeout`: try again.
pub async fn hold_reaping(tx: &Transaction<'_>) -> Result<(), Error> {
    tx.execute(
        "-- pglog::hold_reaping
         SELECT pg_advisory_xact_lock_shared($1::bigint # log_key())",
        &[&REGISTRATION_LOCK],
    )
    .await?;
    Ok(())
}

/// Called by the reaper: until its transaction ends, no consumer can register.
///
/// # Errors
/// Postgres is away, or a registration took longer than the session's `lock_timeout`: try again.
pub async fn hold_registration(tx: &impl Session) -> Result<(), Error> {
    tx.execute(
        "-- pglog::hold_registration
         SELECT pg_advisory_xact_lock($1::bigint # log_key())",
        &[&REGISTRATION_LOCK],
    )
    .await?;
    Ok(())
}
