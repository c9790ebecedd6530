//! Transactions that stay open. Their records get no offset, and vacuum cannot remove rows that were deleted since.

use anyhow::Result;
use deadpool_postgres::ClientWrapper as Client;

use super::Config;
use super::finding::Finding;

/// At most this many transactions are named.
const NAMED_LEN_MAX: i64 = 5;

/// The checks of transactions.
pub(super) async fn check(client: &Client, config: &Config, findings: &mut Vec<Finding>) {
    findings.push(open(client, config).await.unwrap_or_else(|error| Finding::unseen("postgres.open", &error)));
    findings.push(prepared(client, config).await.unwrap_or_else(|error| Finding::unseen("postgres.prepared", &error)));
}

async fn open(client: &Client, config: &Config) -> Result<Finding> {
    const CHECK: &str = "postgres.open";
    let rows = client
        .query(
            "-- operator::doctor::open
             SELECT format('pid %s (%s, %s s, %s)', pid, COALESCE(NULLIF(application_name, ''), 'no name'),
                           extract(epoch FROM now() - xact_start)::bigint, state), pid
             FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
               AND xact_start < now() - $1::float8 * interval '1 second'
             ORDER BY xact_start LIMIT $2",
            &[&config.patience.as_secs_f64(), &NAMED_LEN_MAX],
        )
        .await?;
    let (hidden_count, grant) = hidden(client).await?;
    let Some(oldest) = rows.first() else { return Ok(none_open(hidden_count, grant)) };
    let named: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let hidden = if hidden_count > 0 { format!("; cannot see {hidden_count} sessions") } else { String::new() };
    Ok(Finding::warn(
        CHECK,
        format!("open for long: {}{hidden}", named.join(", ")),
        "records that it staged wait for their offsets, and vacuum cannot remove dead rows of any table",
        format!("let it commit, or SELECT pg_terminate_backend({})", oldest.get::<_, i32>(1)),
    ))
}

/// The finding if no transaction is known to be open for long.
fn none_open(hidden_count: i64, grant: String) -> Finding {
    const CHECK: &str = "postgres.open";
    if hidden_count == 0 {
        return Finding::ok(CHECK, "no transaction is open for long");
    }
    Finding::warn(
        CHECK,
        format!("cannot see since when {hidden_count} sessions of other roles have a transaction open"),
        "their records may wait for their offsets",
        grant,
    )
}

/// The number of sessions whose transactions are hidden from this role (Postgres shows NULL), and the statement that shows them.
async fn hidden(client: &Client) -> Result<(i64, String)> {
    let row = client
        .query_one(
            "-- operator::doctor::hidden
             SELECT count(*), format('as a superuser: GRANT pg_read_all_stats TO %I', current_user)
             FROM pg_stat_activity WHERE datname = current_database() AND backend_type IS NULL",
            &[],
        )
        .await?;
    Ok((row.get(0), row.get(1)))
}

async fn prepared(client: &Client, config: &Config) -> Result<Finding> {
    const CHECK: &str = "postgres.prepared";
    let rows = client
        .query(
            "-- operator::doctor::prepared
             SELECT format('%s (%s, %s s)', gid, owner, extract(epoch FROM now() - prepared)::bigint),
                    format('end it: COMMIT PREPARED %1$L or ROLLBACK PREPARED %1$L', gid)
             FROM pg_prepared_xacts
             WHERE database = current_database() AND prepared < now() - $1::float8 * interval '1 second'
             ORDER BY prepared LIMIT $2",
            &[&config.patience.as_secs_f64(), &NAMED_LEN_MAX],
        )
        .await?;
    let Some(oldest) = rows.first() else { return Ok(Finding::ok(CHECK, "no prepared transaction is left over")) };
    let named: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    Ok(Finding::warn(
        CHECK,
        format!("prepared and never ended: {}", named.join(", ")),
        "it survives restarts: its records wait for their offsets, and vacuum cannot remove dead rows of any table",
        oldest.get::<_, String>(1),
    ))
}
