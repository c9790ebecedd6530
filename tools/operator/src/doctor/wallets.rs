//! The wallets: whether the tables keep their promises, and whether a consumer keeps the documents in Redis.

use anyhow::Result;
use deadpool_postgres::ClientWrapper as Client;

use super::ask;
use super::finding::Finding;

/// All checks of wallets in Postgres.
pub(super) async fn check(client: &Client, findings: &mut Vec<Finding>) {
    findings.push(tables(client).await.unwrap_or_else(|error| Finding::unseen("wallets.tables", &error)));
    findings.push(projector(client).await.unwrap_or_else(|error| Finding::unseen("wallets.projector", &error)));
}

/// The indexes that refuse a second event of one version or of one key, and the triggers that refuse every change.
async fn tables(client: &Client) -> Result<Finding> {
    const CHECK: &str = "wallets.tables";
    let row = ask(
        client,
        "-- operator::doctor::wallet_tables
         SELECT string_agg(name, ', ' ORDER BY name) FROM (
             SELECT name FROM unnest(ARRAY['wallet_events_accepted', 'wallet_events_key', 'wallet_events_pkey', 'wallet_locks_pkey'])
                              AS wanted (name)
             WHERE NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(name) AND indisvalid AND indisunique)
             UNION ALL
             SELECT name FROM unnest(ARRAY['wallet_events', 'wallet_locks']) AS of_table (of_table),
                              LATERAL (SELECT of_table || '_never_change') AS wanted (name)
             WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass(of_table) AND tgname = name
                                                        AND tgenabled IN ('O', 'A'))
         ) AS missing",
    )
    .await?;
    Ok(match row.get::<_, Option<&str>>(0) {
        None => Finding::ok(CHECK, "indexes and triggers are there"),
        Some(names) => Finding::fail(
            CHECK,
            format!("missing, invalid or switched off: {names}"),
            "the tables would take two events of one version or of one key, or would let events be changed",
            "psql \"$DATABASE_URL\" -f schema.sql; before that, DROP an invalid index and ENABLE a trigger that is switched off",
        ),
    })
}

/// A consumer keeps the documents in Redis.
async fn projector(client: &Client) -> Result<Finding> {
    const CHECK: &str = "wallets.projector";
    let row = ask(
        client,
        "-- operator::doctor::projector
         SELECT EXISTS (SELECT FROM wallet_locks), (SELECT string_agg(name, ', ' ORDER BY name) FROM checkpoints WHERE fold = 'wallets')",
    )
    .await?;
    Ok(match (row.get::<_, bool>(0), row.get::<_, Option<&str>>(1)) {
        (_, Some(names)) => Finding::ok(CHECK, format!("registered: {names}")),
        (false, None) => Finding::ok(CHECK, "no wallet is used"),
        (true, None) => Finding::warn(
            CHECK,
            "wallets are used, and no consumer with the fold wallets is registered",
            "the api writes no document to Redis before that consumer has begun an epoch: every read asks Postgres",
            "start one: consumer wallets --fold wallets",
        ),
    })
}
