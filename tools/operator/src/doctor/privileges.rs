//! Whether the role that connects may do what a process does.

use anyhow::Result;
use clap::ValueEnum;
use deadpool_postgres::ClientWrapper as Client;

use super::finding::Finding;

/// A process that connects to Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Writes rides and stages their records.
    Api,
    /// Finishes bookings.
    Completer,
    /// Fixes the order.
    Streamer,
    /// Folds.
    Consumer,
    /// Folds, and delivers receipts.
    Receipts,
    /// Removes what is passed.
    Reaper,
    /// Looks.
    Dashboard,
}

/// What each process does to each table.
const NEEDS: &[(Role, &str, &[&str])] = &[
    (Role::Api, "rides", &["SELECT", "INSERT"]),
    (Role::Api, "staged_log_records", &["INSERT"]),
    (Role::Api, "log_batches", &["SELECT"]),
    (Role::Api, "checkpoints", &["SELECT"]),
    (Role::Api, "consumer_states", &["SELECT"]),
    (Role::Api, "dead_letters", &["SELECT"]),
    (Role::Api, "users", &["SELECT"]),
    (Role::Api, "tracked_operations", &["SELECT", "INSERT", "UPDATE"]),
    (Role::Api, "bookings", &["SELECT", "INSERT", "UPDATE"]),
    (Role::Api, "audit_records", &["INSERT"]),
    (Role::Completer, "rides", &["SELECT", "INSERT"]),
    (Role::Completer, "staged_log_records", &["INSERT"]),
    (Role::Completer, "users", &["SELECT"]),
    (Role::Completer, "tracked_operations", &["SELECT", "INSERT", "UPDATE"]),
    (Role::Completer, "bookings", &["SELECT", "INSERT", "UPDATE"]),
    (Role::Completer, "audit_records", &["INSERT"]),
    (Role::Completer, "completions", &["SELECT", "INSERT", "UPDATE"]),
    (Role::Streamer, "staged_log_records", &["SELECT"]),
    (Role::Streamer, "log_batches", &["SELECT", "INSERT"]),
    (Role::Streamer, "checkpoints", &["SELECT"]),
    (Role::Streamer, "log_identity", &["SELECT"]),
    (Role::Consumer, "staged_log_records", &["SELECT"]),
    (Role::Consumer, "log_batches", &["SELECT"]),
    (Role::Consumer, "checkpoints", &["SELECT", "INSERT", "UPDATE"]),
    (Role::Consumer, "consumer_states", &["SELECT", "INSERT", "UPDATE"]),
    (Role::Consumer, "dead_letters", &["SELECT", "INSERT"]),
    (Role::Consumer, "log_identity", &["SELECT"]),
    (Role::Receipts, "staged_log_records", &["SELECT"]),
    (Role::Receipts, "log_batches", &["SELECT"]),
    (Role::Receipts, "checkpoints", &["SELECT", "INSERT", "UPDATE"]),
    (Role::Receipts, "dead_letters", &["SELECT", "INSERT"]),
    (Role::Receipts, "receipts", &["SELECT", "INSERT", "UPDATE"]),
    (Role::Receipts, "users", &["SELECT"]),
    (Role::Receipts, "log_identity", &["SELECT"]),
    (Role::Reaper, "staged_log_records", &["SELECT", "DELETE"]),
    (Role::Reaper, "log_batches", &["SELECT", "UPDATE", "DELETE"]),
    (Role::Reaper, "checkpoints", &["SELECT", "INSERT", "UPDATE"]),
    (Role::Reaper, "consumer_states", &["SELECT", "INSERT", "UPDATE"]),
    (Role::Reaper, "dead_letters", &["SELECT", "INSERT"]),
    (Role::Reaper, "log_identity", &["SELECT"]),
    (Role::Reaper, "tracked_operations", &["SELECT", "DELETE"]),
    (Role::Reaper, "bookings", &["SELECT"]),
    (Role::Reaper, "reaped_requests", &["SELECT", "INSERT"]),
    (Role::Dashboard, "rides", &["SELECT"]),
    (Role::Dashboard, "staged_log_records", &["SELECT"]),
    (Role::Dashboard, "log_batches", &["SELECT"]),
    (Role::Dashboard, "checkpoints", &["SELECT"]),
    (Role::Dashboard, "consumer_states", &["SELECT"]),
    (Role::Dashboard, "dead_letters", &["SELECT"]),
    (Role::Dashboard, "log_identity", &["SELECT"]),
];

/// The check of privileges. `role` is the process to look at; without one, all of them.
pub(super) async fn check(client: &Client, role: Option<Role>, findings: &mut Vec<Finding>) {
    const CHECK: &str = "postgres.privileges";
    findings.push(match missing(client, role).await {
        Err(error) => Finding::unseen(CHECK, &error),
        Ok((user, grants)) if grants.is_empty() => Finding::ok(CHECK, format!("role {user} may do all that it must")),
        Ok((user, grants)) => Finding::fail(
            CHECK,
            format!("role {user} lacks {} privileges", grants.len()),
            "the process fails as soon as it needs one of them",
            grants.join("; "),
        ),
    });
}

/// The role's name, and the GRANTs it lacks.
async fn missing(client: &Client, role: Option<Role>) -> Result<(String, Vec<String>)> {
    let (mut tables, mut privileges) = (Vec::new(), Vec::new());
    for (needed_by, table, needs) in NEEDS {
        for privilege in *needs {
            if role.is_none_or(|role| role == *needed_by) {
                tables.push(*table);
                privileges.push(*privilege);
            }
        }
    }
    let stages = matches!(role, None | Some(Role::Api | Role::Completer));
    let needs_identity = !matches!(role, Some(Role::Api | Role::Completer));
    let rows = client
        .query(
            "-- operator::doctor::missing
             SELECT DISTINCT format('GRANT %s ON %s TO %I', privilege, name, current_user)
             FROM unnest($1::text[], $2::text[]) AS needed (name, privilege)
             -- A table that is not there is another check's business.
             -- roles.sql grants single columns where these suffice; of DELETE there is no such thing.
             WHERE NOT CASE privilege WHEN 'DELETE' THEN has_table_privilege(to_regclass(name), privilege)
                       ELSE has_any_column_privilege(to_regclass(name), privilege) END
             UNION ALL
             SELECT format('GRANT EXECUTE ON FUNCTION pg_control_system() TO %I', current_user)
             WHERE $3 AND NOT has_function_privilege('pg_control_system()', 'EXECUTE')
             UNION ALL
             -- Granted column by column, and this one was added later.
             SELECT format('GRANT INSERT (traceparent) ON staged_log_records TO %I', current_user) FROM pg_attribute
             WHERE $4 AND attrelid = to_regclass('staged_log_records') AND attname = 'traceparent'
               AND NOT has_column_privilege(attrelid, attnum, 'INSERT')
             ORDER BY 1",
            &[&tables, &privileges, &needs_identity, &stages],
        )
        .await?;
    let user = client.query_one("SELECT current_user::text", &[]).await?.get(0);
    Ok((user, rows.iter().map(|row| row.get(0)).collect()))
}
