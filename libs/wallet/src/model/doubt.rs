//! Whether the mark in Redis and the log in Postgres are of one past. The projector acts on it, `doctor` and `audit` tell it.
//!
//! Redis is read first. So the log has the batch that the mark names, unless Postgres was put back to an older state.

use std::fmt;

use pglog::{Partition, Session};

use super::mark::{Mark, Marked, Run};

/// Why the documents in Redis cannot be believed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// There is no mark: Redis is new or was emptied, or an event in it contradicted Postgres.
    NoMark,
    /// The mark was set before Redis was restarted. Redis may have lost its newest writes.
    OtherRun,
    /// The documents were read in another run of Postgres: it was restarted or put back, or a standby took its place. It may lack
    /// events that documents show, also of wallets that it does not know any more.
    OtherPostgres,
    /// The mark lacks a partition of the log: another log uses the same stream name and the same Redis.
    OtherPartitions,
    /// The mark is below the checkpoint: Redis was put back to an older state.
    Behind,
    /// The mark is beyond the head of the log: Postgres was put back to an older state.
    BeyondHead,
    /// The batch at the offset of the mark has another token: Postgres was put back to an older state.
    OtherToken,
    /// The scrubber, or a record, found a document that Postgres contradicts: Postgres was put back to an older state.
    OtherDocument,
}

impl fmt::Display for Doubt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::NoMark => "Redis has no mark: it is new, or was emptied",
            Self::OtherRun => "Redis was restarted, and may have lost its newest writes",
            Self::OtherPostgres => "Postgres was restarted or is another server, and may have lost its newest events",
            Self::OtherPartitions => {
                "the mark in Redis is of a log with fewer partitions: does another log use the same STREAM_NAME?"
            }
            Self::Behind => "the mark in Redis is behind the checkpoint: Redis was put back to an older state",
            Self::BeyondHead => "the mark in Redis is beyond the log: Postgres was put back to an older state",
            Self::OtherToken => "the mark in Redis is of another batch: Postgres was put back to an older state",
            Self::OtherDocument => "Redis has an event that Postgres lacks: Postgres was put back to an older state",
        })
    }
}

/// Looks for a reason to doubt a mark that was read before. The present run of Postgres is compared if it is given. `checkpoints` are
/// those of the projector in some partitions, and were read before the mark.
///
/// # Errors
/// Postgres is away.
pub async fn find_doubt(
    session: &impl Session,
    mark: Option<&Mark>,
    (redis, postgres): (Run, Option<Run>),
    checkpoints: &[(Partition, i64)],
) -> Result<Option<Doubt>, pglog::Error> {
    let Some(mark) = mark else { return Ok(Some(Doubt::NoMark)) };
    if !mark.epoch.is_for(redis) {
        return Ok(Some(Doubt::OtherRun));
    }
    let places: Option<Vec<Marked>> = checkpoints.iter().map(|(partition, _)| mark.place(*partition)).collect();
    let Some(places) = places else { return Ok(Some(Doubt::OtherPartitions)) };
    if places.iter().zip(checkpoints).any(|(place, (_, checkpoint))| place.offset < *checkpoint) {
        return Ok(Some(Doubt::Behind));
    }
    let partitions: Vec<Partition> = checkpoints.iter().map(|(partition, _)| *partition).collect();
    let offsets: Vec<i64> = places.iter().map(|place| place.offset).collect();
    let found = pglog::tokens_at(session, &partitions, &offsets).await?;
    for (place, (token, head)) in places.iter().zip(found) {
        if token.is_some_and(|token| token != place.token) {
            return Ok(Some(Doubt::OtherToken));
        }
        // A batch that is not there is reaped, or was never cut. Only batches at and below the checkpoint are reaped.
        if token.is_none() && place.offset > head {
            return Ok(Some(Doubt::BeyondHead));
        }
    }
    Ok(postgres.filter(|postgres| !mark.epoch.is_from(*postgres)).map(|_| Doubt::OtherPostgres))
}
