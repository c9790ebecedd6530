//! Comparing a wallet in Redis with the same wallet in Postgres. Redis was read first. So Postgres has every event that was the
//! newest in Redis, unless it was put back to an older state.

use wallet::documents::{Document, Head};

/// The result for one wallet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// Both agree.
    Sound,
    /// Redis has nothing, something older, or another state for the same event: the document of Postgres is to be written.
    Outdated,
    /// Redis has an event that Postgres does not have.
    Gone,
}

/// Compares the head of the document in Redis, if there is one of this epoch, with the document in Postgres, if the wallet has an
/// accepted event.
pub(super) fn compare(redis: Option<Head>, postgres: Option<&Document>) -> Finding {
    let (Some(redis), Some(postgres)) = (redis, postgres) else {
        return match (redis, postgres) {
            (Some(_), _) => Finding::Gone,
            (None, Some(_)) => Finding::Outdated,
            (None, None) => Finding::Sound,
        };
    };
    if redis.version > postgres.version || redis.version == postgres.version && redis.event_id != postgres.event_id {
        Finding::Gone
    } else if redis != postgres.head() {
        Finding::Outdated
    } else {
        Finding::Sound
    }
}
