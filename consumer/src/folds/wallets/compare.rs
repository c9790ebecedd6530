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

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use wallet::documents::Transaction;
    use wallet::{EventId, WalletId};

    use super::*;

    fn document(version: i64) -> Document {
        let (timestamp, event_id) = (Timestamp::UNIX_EPOCH, EventId::new());
        let newest = Transaction { timestamp, counterparty: None, amount_minor: 5, version, event_id };
        Document { wallet: WalletId::new(), version, event_id, timestamp, balance_minor: 5, transactions: vec![newest] }
    }

    #[test]
    fn a_document_that_equals_postgres_is_sound_and_so_is_none_of_a_wallet_without_events() {
        let postgres = document(7);
        assert_eq!(compare(Some(postgres.head()), Some(&postgres)), Finding::Sound);
        assert_eq!(compare(None, None), Finding::Sound);
    }

    #[test]
    fn a_document_that_is_missing_older_or_wrong_is_outdated() {
        let postgres = document(7);
        assert_eq!(compare(None, Some(&postgres)), Finding::Outdated);
        // Postgres was not put back, so it has the older event, too.
        assert_eq!(compare(Some(document(6).head()), Some(&postgres)), Finding::Outdated);
        let wrong = Head { balance_minor: 6, ..postgres.head() };
        assert_eq!(compare(Some(wrong), Some(&postgres)), Finding::Outdated);
        let wrong = Head { timestamp: Timestamp::MAX, ..postgres.head() };
        assert_eq!(compare(Some(wrong), Some(&postgres)), Finding::Outdated);
    }

    #[test]
    fn an_event_that_postgres_lacks_is_gone() {
        let postgres = document(7);
        for version in [7, 8] {
            assert_eq!(compare(Some(document(version).head()), Some(&postgres)), Finding::Gone, "version {version}");
        }
        assert_eq!(compare(Some(document(1).head()), None), Finding::Gone);
    }
}
