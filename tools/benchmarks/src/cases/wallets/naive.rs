//! The limit of Postgres when every command is its own transaction: wallets in a table that is updated.

use anyhow::{Context, Result};

use super::service::ID_OF_NUMBER;
use super::{CONNECTIONS, EVENT_COUNT, WALLET_COUNT};
use crate::bench::Bench;
use crate::pgbench;

/// The tables, with as many wallets and events as the api's.
const TABLES: &str = "-- benchmarks::naive_tables
    CREATE TABLE naive_wallets (id TEXT COLLATE \"C\" PRIMARY KEY, version BIGINT NOT NULL, balance_minor BIGINT NOT NULL);
    CREATE TABLE naive_events (
        event_id TEXT COLLATE \"C\" PRIMARY KEY, wallet_id TEXT COLLATE \"C\" NOT NULL, action TEXT NOT NULL,
        amount_minor BIGINT NOT NULL, created_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(), idempotency_key TEXT,
        UNIQUE (wallet_id, idempotency_key));
    CREATE TABLE naive_states (
        wallet_id TEXT COLLATE \"C\" NOT NULL, version BIGINT NOT NULL, balance_minor BIGINT NOT NULL, event_id TEXT NOT NULL,
        PRIMARY KEY (wallet_id, version));";

/// Lets pgbench stop in the middle.
const DROP_TABLES: &str = "-- benchmarks::naive_tables
    DROP TABLE IF EXISTS naive_wallets, naive_events, naive_states";

/// Credits a random one of the first `wallets` wallets.
fn credit(wallets: i64) -> String {
    format!(
        r#"\set number random(1, {wallets})
\set key random(1, 9000000000000000000)
BEGIN;
SELECT id, version + 1 AS version, balance_minor + 500 AS balance_minor FROM naive_wallets WHERE id = '0' || substr(md5(:number), 1, 26) FOR UPDATE \gset
SELECT count(*) AS known FROM naive_events WHERE wallet_id = :id AND idempotency_key = :key \gset
INSERT INTO naive_events (event_id, wallet_id, action, amount_minor, idempotency_key) VALUES (gen_random_uuid(), :id, 'credit', 500, :key) RETURNING event_id \gset
INSERT INTO naive_states VALUES (:id, :version, :balance_minor, :event_id);
UPDATE naive_wallets SET version = :version, balance_minor = :balance_minor WHERE id = :id;
INSERT INTO staged_log_records (object, action, data) VALUES ('wallet', 'credit', format('{{"wallet_id":"%s","version":%s,"event_id":"%s","amount_minor":500,"balance_minor":%s,"counterparty":"world"}}', :id::text, :version::bigint, :event_id::text, :balance_minor::bigint)::json);
COMMIT;
"#
    )
}

/// Transfers between two random wallets, locked in the order of their numbers.
fn transfer(wallets: i64) -> String {
    format!(
        r#"\set first random(1, {wallets} - 1)
\set second random(:first + 1, {wallets})
\set key random(1, 9000000000000000000)
BEGIN;
SELECT id AS payer, version + 1 AS paid_version, balance_minor - 500 AS paid_minor FROM naive_wallets WHERE id = '0' || substr(md5(:first), 1, 26) FOR UPDATE \gset
SELECT id AS receiver, version + 1 AS received_version, balance_minor + 500 AS received_minor FROM naive_wallets WHERE id = '0' || substr(md5(:second), 1, 26) FOR UPDATE \gset
SELECT count(*) AS known FROM naive_events WHERE wallet_id = :payer AND idempotency_key = :key \gset
INSERT INTO naive_events (event_id, wallet_id, action, amount_minor, idempotency_key) VALUES (gen_random_uuid(), :payer, 'transfer', -500, :key) RETURNING event_id AS paid \gset
INSERT INTO naive_events (event_id, wallet_id, action, amount_minor) VALUES (gen_random_uuid(), :receiver, 'transfer', 500) RETURNING event_id AS received \gset
INSERT INTO naive_states VALUES (:payer, :paid_version, :paid_minor, :paid), (:receiver, :received_version, :received_minor, :received);
UPDATE naive_wallets SET version = :paid_version, balance_minor = :paid_minor WHERE id = :payer;
UPDATE naive_wallets SET version = :received_version, balance_minor = :received_minor WHERE id = :receiver;
INSERT INTO staged_log_records (object, action, data) VALUES ('wallet', 'transfer', format('{{"wallet_id":"%s","version":%s,"event_id":"%s","amount_minor":-500,"balance_minor":%s,"counterparty":"%s"}}', :payer::text, :paid_version::bigint, :paid::text, :paid_minor::bigint, :receiver::text)::json), ('wallet', 'transfer', format('{{"wallet_id":"%s","version":%s,"event_id":"%s","amount_minor":500,"balance_minor":%s,"counterparty":"%s"}}', :receiver::text, :received_version::bigint, :received::text, :received_minor::bigint, :payer::text)::json);
COMMIT;
"#
    )
}

/// Credits per second on random ones of `wallets` wallets.
///
/// # Errors
/// pgbench failed.
pub(super) async fn credits_per_s(bench: &Bench, wallets: i64) -> Result<f64> {
    per_s(bench, &credit(wallets)).await
}

/// Transfers per second between random wallets.
///
/// # Errors
/// pgbench failed.
pub(super) async fn transfers_per_s(bench: &Bench) -> Result<f64> {
    per_s(bench, &transfer(WALLET_COUNT)).await
}

async fn per_s(bench: &Bench, script: &str) -> Result<f64> {
    bench.fresh_tables().await?;
    let fill = format!(
        "{DROP_TABLES};
         {TABLES}
         INSERT INTO naive_wallets
         SELECT {ID_OF_NUMBER}, {EVENT_COUNT}, {EVENT_COUNT} * 100000 FROM generate_series(1, {WALLET_COUNT}) AS n;
         INSERT INTO naive_events
         SELECT gen_random_uuid(), {ID_OF_NUMBER}, 'credit', 100000
         FROM generate_series(1, {EVENT_COUNT}), generate_series(1, {WALLET_COUNT}) AS n;
         INSERT INTO naive_states
         SELECT {ID_OF_NUMBER}, version, version * 100000, gen_random_uuid()
         FROM generate_series(1, {EVENT_COUNT}) AS version, generate_series(1, {WALLET_COUNT}) AS n;"
    );
    bench.client.batch_execute(&fill).await.context("filling the tables of the limit")?;
    let vacuum = "-- benchmarks::naive_tables\nVACUUM (ANALYZE) naive_wallets, naive_events, naive_states";
    bench.client.batch_execute(vacuum).await.context("vacuuming the tables of the limit")?;
    bench.checkpoint().await?;
    let outcome = pgbench::run_on_tables(bench, script, CONNECTIONS).await;
    bench.client.batch_execute(DROP_TABLES).await.context("dropping the tables of the limit")?;
    Ok(outcome?.rate)
}
