//! Holders of vacuum: whatever still may look at rows that were deleted since. Vacuum cannot remove such rows from any table.
//!
//! Postgres tells how old a holder is in transactions only. It has held vacuum for longer than `--patience` if it is older than
//! the newest batch of that age. All roles may see these columns, also of the sessions of other roles.

use anyhow::Result;
use deadpool_postgres::ClientWrapper as Client;

use super::finding::Finding;
use super::{Config, Log};

/// At most this many holders are named.
const NAMED_LEN_MAX: i64 = 5;

/// The check.
pub(super) async fn check(client: &Client, config: &Config, log: &Log) -> Finding {
    holders(client, config, log).await.unwrap_or_else(|error| Finding::unseen("postgres.vacuum", &error))
}

async fn holders(client: &Client, config: &Config, log: &Log) -> Result<Finding> {
    const CHECK: &str = "postgres.vacuum";
    let rows = client
        .query(
            "-- operator::doctor::holders
             WITH holders (name, fix, age, is_left) AS (
                 SELECT format('session %s (%s of %s)', pid, COALESCE(NULLIF(application_name, ''), 'no name'), usename),
                        format('end its transaction, or SELECT pg_terminate_backend(%s)', pid),
                        greatest(age(backend_xmin), age(backend_xid)), false
                 FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid()
                   AND backend_type IS DISTINCT FROM 'autovacuum worker'
                 UNION ALL
                 SELECT format('prepared transaction %s', gid),
                        format('COMMIT PREPARED %L or ROLLBACK PREPARED %1$L', gid), age(transaction), false
                 FROM pg_prepared_xacts WHERE database = current_database()
                 UNION ALL
                 -- A standby without a slot: the slot says it for the others.
                 SELECT format('standby %s', COALESCE(NULLIF(application_name, ''), client_addr::text, pid::text)),
                        'end the long queries there, or set hot_standby_feedback = off there', age(backend_xmin), false
                 FROM pg_stat_replication
                 UNION ALL
                 SELECT format('replication slot %s (%s)', slot_name, CASE WHEN active THEN 'in use' ELSE 'not in use' END),
                        CASE WHEN active THEN 'see what its reader waits for: a standby may have long queries'
                             ELSE format('start its reader, or SELECT pg_drop_replication_slot(%L)', slot_name) END,
                        greatest(age(xmin), age(catalog_xmin)), NOT active
                 FROM pg_replication_slots
             )
             SELECT format('%s, %s transactions', name, age), fix FROM holders
             WHERE is_left AND age IS NOT NULL
                OR age >= age((SELECT newest.xmax FROM unnest($1::int[]) AS looked_at (partition) CROSS JOIN LATERAL (
                                   SELECT pg_snapshot_xmax(snapshot) AS xmax FROM log_batches AS b
                                   WHERE b.partition = looked_at.partition
                                     AND created_at < now() - $2::float8 * interval '1 second'
                                   ORDER BY b.partition DESC, first_offset DESC LIMIT 1) AS newest
                               ORDER BY newest.xmax DESC LIMIT 1)::xid)
             ORDER BY age DESC, name LIMIT $3",
            &[&log.partitions, &config.patience.as_secs_f64(), &NAMED_LEN_MAX],
        )
        .await?;
    let Some(oldest) = rows.first() else { return Ok(Finding::ok(CHECK, "nothing has held it back for long")) };
    let named: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    Ok(Finding::warn(
        CHECK,
        format!("held back by {}", named.join("; ")),
        "rows that were deleted since stay in every table: tables grow, reads get slower, and the database ages",
        oldest.get::<_, String>(1),
    ))
}
