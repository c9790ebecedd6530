//! The Postgres server: whether it writes to disk what it confirms, and whether vacuum does its work.

use anyhow::Result;
use common::stay_down::StayDown;
use deadpool_postgres::ClientWrapper as Client;

use super::finding::Finding;
use super::{ask, postgres_session};

/// The age of a database, in transactions, from which on the doctor warns. Autovacuum begins at 200 million; at 2,144
/// million the server refuses all writes.
const AGE_MAX: i64 = 1_000_000_000;
/// The age from which on the check fails.
const AGE_STOP: i64 = 2_000_000_000;

/// The connection, or a finding that there is none.
pub(super) fn reachable(connected: Result<Client>, findings: &mut Vec<Finding>) -> Option<Client> {
    match connected {
        Ok(client) => Some(client),
        Err(error) if error.is::<StayDown>() => {
            findings.push(postgres_session::shared());
            None
        }
        Err(error) => {
            findings.push(Finding::fail(
                "postgres.reachable",
                format!("{error:#}"),
                "nothing works without it",
                "start Postgres 14 or newer, or set DATABASE_URL to where it is",
            ));
            None
        }
    }
}

/// All checks of the server.
pub(super) async fn check(client: &Client, findings: &mut Vec<Finding>) {
    findings.push(version(client).await.unwrap_or_else(|error| Finding::unseen("postgres.reachable", &error)));
    match durability(client).await {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(Finding::unseen("postgres.durability", &error)),
    }
    findings.push(autovacuum(client).await.unwrap_or_else(|error| Finding::unseen("postgres.autovacuum", &error)));
    findings.push(match database_age(client).await {
        Ok((database, age)) => wraparound(&database, age),
        Err(error) => Finding::unseen("postgres.wraparound", &error),
    });
}

async fn version(client: &Client) -> Result<Finding> {
    let row = ask(
        client,
        "-- operator::doctor::version
         SELECT current_setting('server_version'), current_setting('server_version_num')::int, pg_is_in_recovery()",
    )
    .await?;
    let (version, number): (String, i32) = (row.get(0), row.get(1));
    if number < 140_000 {
        return Ok(Finding::fail(
            "postgres.reachable",
            format!("it is version {version}"),
            "schema.sql needs features of version 14",
            "upgrade to PostgreSQL 14 or newer",
        ));
    }
    if row.get(2) {
        return Ok(Finding::fail(
            "postgres.reachable",
            format!("version {version}, a standby in recovery"),
            "it refuses writes",
            "set DATABASE_URL to the primary",
        ));
    }
    Ok(Finding::ok("postgres.reachable", format!("version {version}")))
}

async fn durability(client: &Client) -> Result<Vec<Finding>> {
    let row = ask(
        client,
        "-- operator::doctor::durability
         SELECT current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit')",
    )
    .await?;
    let (fsync, full_page_writes, synchronous_commit): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
    const DAMAGED: &str = "a power cut damages the database, which holds the only complete copy of the log";
    Ok(vec![
        match fsync {
            "off" => Finding::fail(
                "postgres.fsync",
                "fsync is off",
                DAMAGED,
                "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf()",
            ),
            _ => Finding::ok("postgres.fsync", "fsync is on"),
        },
        match full_page_writes {
            "off" => Finding::fail(
                "postgres.full_page_writes",
                "full_page_writes is off",
                DAMAGED,
                "ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf()",
            ),
            _ => Finding::ok("postgres.full_page_writes", "full_page_writes is on"),
        },
        match synchronous_commit {
            "off" => Finding::warn(
                "postgres.synchronous_commit",
                "synchronous_commit is off",
                "a crash loses rides that the api has confirmed within the last half second",
                "ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf(); it may also be set by ALTER ROLE or ALTER DATABASE",
            ),
            _ => Finding::ok("postgres.synchronous_commit", format!("synchronous_commit is {synchronous_commit}")),
        },
    ])
}

async fn autovacuum(client: &Client) -> Result<Finding> {
    const CHECK: &str = "postgres.autovacuum";
    const WHY: &str = "reaped rows and old checkpoints stay on disk: tables grow and every read gets slower";
    let row = ask(
        client,
        "-- operator::doctor::autovacuum
         SELECT current_setting('autovacuum'), (
             SELECT string_agg(relname, ', ' ORDER BY relname) FROM pg_class
             WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'
               AND EXISTS (SELECT FROM pg_options_to_table(reloptions)
                           WHERE option_name = 'autovacuum_enabled' AND NOT option_value::bool))",
    )
    .await?;
    let (everywhere, tables): (&str, Option<String>) = (row.get(0), row.get(1));
    Ok(match tables {
        _ if everywhere == "off" => {
            Finding::warn(CHECK, "autovacuum is off", WHY, "ALTER SYSTEM SET autovacuum = on; SELECT pg_reload_conf()")
        }
        Some(tables) => Finding::warn(
            CHECK,
            format!("autovacuum is off on {tables}"),
            WHY,
            "ALTER TABLE … RESET (autovacuum_enabled) on each",
        ),
        None => Finding::ok(CHECK, "autovacuum is on"),
    })
}

/// The oldest database of the cluster, and its age. If one database is too old, the server refuses writes to all.
async fn database_age(client: &Client) -> Result<(String, i64)> {
    let row = ask(
        client,
        "-- operator::doctor::database_age
         SELECT datname::text, age(datfrozenxid)::bigint FROM pg_database ORDER BY age(datfrozenxid) DESC LIMIT 1",
    )
    .await?;
    Ok((row.get(0), row.get(1)))
}

fn wraparound(database: &str, age: i64) -> Finding {
    const CHECK: &str = "postgres.wraparound";
    const WHY: &str = "at 2,144 million the server refuses writes until the database is vacuumed";
    let what = format!("the oldest database, {database}, is {age} transactions old");
    let fix = || {
        format!(
            "end what holds vacuum back (open or prepared transactions, replication slots), then VACUUM in {database}"
        )
    };
    match age {
        AGE_STOP.. => Finding::fail(CHECK, what, WHY, fix()),
        AGE_MAX.. => Finding::warn(CHECK, what, WHY, fix()),
        _ => Finding::ok(CHECK, what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_database_near_the_end_of_its_transaction_ids_is_called_out() {
        let verdict = |age| wraparound("rides", age).verdict;
        assert_eq!(
            [verdict(250_000_000), verdict(1_500_000_000), verdict(2_100_000_000)],
            [Verdict::Ok, Verdict::Warn, Verdict::Fail]
        );
    }
}
