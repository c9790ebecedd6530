//! Whether wallets can be written and read, for the health of the api.

/// A statement that succeeds only while wallets can be written and read, and changes no row: it fails on a server that is
/// read-only, and where a table, a column or a right is missing.
pub const TRIAL: &str = "-- wallet::trial
    WITH locks AS (
        INSERT INTO wallet_locks (wallet_id) SELECT NULL WHERE false
    ), events AS (
        INSERT INTO wallet_events (event_id, wallet_id, version, balance_minor, accepted, reason, action, amount_minor,
                                   counterparty, idempotency_key, origin_ip, traceparent)
        SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE false
    ), records AS (
        INSERT INTO staged_log_records (partition, object, action, data, traceparent)
        SELECT partition_of(NULL), NULL, NULL, NULL, NULL WHERE false
    )
    SELECT e.event_id, e.version, e.balance_minor, e.accepted, e.reason, e.action, e.amount_minor, e.counterparty,
           e.created_at, e.idempotency_key
    FROM wallet_events AS e, wallet_locks AS l WHERE false FOR UPDATE OF l";
