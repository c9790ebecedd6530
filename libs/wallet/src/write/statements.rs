//! The statements of a group. Each looks its rows up one by one, by `LATERAL … LIMIT 1`.

use deadpool_postgres::ClientWrapper;
use tokio_postgres::{Error, Statement};

/// Begins a transaction. If this process is stopped between its flights, the server ends the session, and so the wallets are
/// free again.
pub(super) const BEGIN: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '5s'";

/// As [`BEGIN`], for a transaction that waits for a lock, but not for long.
pub(super) const BEGIN_WITH_LOCK_WAIT: &str =
    "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '5s'; SET LOCAL lock_timeout = '250ms'";

/// Inserts the lock rows that are missing. It runs before BEGIN, so that no row of it stays uncommitted for long: another
/// session would have to wait for it. It needs no flush of its own, because the COMMIT of the group flushes it, too: the first
/// two settings hold for this statement only.
///
/// The other two hold for the session from its first group on. A plan that was made while a table was small must not read the
/// whole table later, and the plans do not depend on the values.
const INSERT_LOCKS: &str = "-- wallet::insert_locks
     INSERT INTO wallet_locks (wallet_id)
     SELECT asked.wallet_id
     FROM set_config('synchronous_commit', 'off', true) AS unflushed,
          set_config('lock_timeout', '50ms', true) AS bounded,
          set_config('enable_seqscan', 'off', false) AS indexed,
          set_config('plan_cache_mode', 'force_generic_plan', false) AS planned_once,
          unnest($1::text[]) AS asked (wallet_id)
     WHERE (SELECT true FROM wallet_locks AS known WHERE known.wallet_id = asked.wallet_id LIMIT 1) IS NULL
     ORDER BY asked.wallet_id
     ON CONFLICT DO NOTHING";

/// Locks a wallet, and waits for it.
pub(super) const WAIT_FOR_LOCK: &str = "-- wallet::wait_for_lock
     SELECT FROM wallet_locks WHERE wallet_id = $1::text FOR UPDATE";

/// Locks the wallets that no other session holds.
const LOCK_FREE: &str = "-- wallet::lock_free
     SELECT asked.place FROM unnest($1::text[]) WITH ORDINALITY AS asked (wallet_id, place),
          LATERAL (SELECT wallet_id FROM wallet_locks WHERE wallet_id = asked.wallet_id
                   LIMIT 1 FOR UPDATE SKIP LOCKED) AS locked";

/// Reads the states of the wallets that have one. It comes after the locks, in a statement of its own, because a statement sees
/// what was committed before it began: that of the locks may have begun before an earlier holder committed.
const READ_STATES: &str = "-- wallet::read_states
     SELECT asked.place, newest.*
     FROM unnest($1::text[]) WITH ORDINALITY AS asked (wallet_id, place),
          LATERAL (SELECT version, balance_minor, event_id::text FROM wallet_events
                   WHERE wallet_id = asked.wallet_id AND accepted ORDER BY version DESC LIMIT 1) AS newest";

/// Reads the events with these keys.
const READ_KEYS: &str = "-- wallet::read_keys
     SELECT asked.place, known.*
     FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS asked (wallet_id, key, place),
          LATERAL (SELECT event_id::text, version, balance_minor, reason, action, amount_minor, counterparty
                   FROM wallet_events
                   WHERE wallet_id = asked.wallet_id AND idempotency_key = asked.key LIMIT 1) AS known";

/// Writes the events and stages their records, both in the order of decisions. Returns the times of the events in this order.
/// With the traces it is a separate statement, because they make it slower.
macro_rules! write_events {
    ($name:literal, $column:literal, $array:literal) => {
        concat!(
            "-- wallet::",
            $name,
            "
     WITH staged AS (
         INSERT INTO staged_log_records (partition, object, action, data",
            $column,
            ")
         SELECT partition_of(wallet_id), 'wallet', action, data::json",
            $column,
            " FROM unnest($2::text[], $11::text[], $12::text[]",
            $array,
            ") WITH ORDINALITY AS new (wallet_id, action, data",
            $column,
            ", place) ORDER BY place
     )
     INSERT INTO wallet_events (event_id, wallet_id, version, balance_minor, accepted, reason, action, amount_minor,
                                counterparty, idempotency_key, origin_ip",
            $column,
            ")
     SELECT event_id, wallet_id, version, balance_minor, reason IS NULL, reason, action, amount_minor, counterparty,
            idempotency_key, origin_ip",
            $column,
            "
     FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::bigint[], $8::text[],
                 $9::text[], $10::inet[]",
            $array,
            ") WITH ORDINALITY AS new (event_id, wallet_id, version, balance_minor, reason, action, amount_minor,
                 counterparty, idempotency_key, origin_ip",
            $column,
            ", place) ORDER BY place
     RETURNING created_at"
        )
    };
}

/// The statements of a connection.
pub(super) struct Statements {
    pub insert_locks: Statement,
    pub wait_for_lock: Statement,
    pub lock_free: Statement,
    pub read_states: Statement,
    pub read_keys: Statement,
    pub write: Statement,
    pub write_traced: Statement,
}

impl Statements {
    /// Prepares all of them on a new connection. Later they are at hand: a flight must not stop to prepare one.
    ///
    /// # Errors
    /// Postgres is away, or a table or a right is missing.
    pub async fn prepare(client: &ClientWrapper) -> Result<Self, Error> {
        Ok(Self {
            insert_locks: client.prepare_cached(INSERT_LOCKS).await?,
            wait_for_lock: client.prepare_cached(WAIT_FOR_LOCK).await?,
            lock_free: client.prepare_cached(LOCK_FREE).await?,
            read_states: client.prepare_cached(READ_STATES).await?,
            read_keys: client.prepare_cached(READ_KEYS).await?,
            write: client.prepare_cached(write_events!("write_events", "", "")).await?,
            write_traced: client
                .prepare_cached(write_events!("write_traced_events", ", traceparent", ", $13::text[]"))
                .await?,
        })
    }
}
