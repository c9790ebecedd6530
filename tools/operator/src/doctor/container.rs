//! The container: whether its tables keep their promises, and the units and destinations that a person has to look at.

use ::container::declaration::{Declaration, Kind, environment};
use anyhow::Result;
use deadpool_postgres::ClientWrapper as Client;

use super::finding::Finding;
use super::redis_server::info;
use super::{Config, ask};

/// Units that a finding names. It counts the others.
const NAMED_COUNT_MAX: i64 = 20;

/// All checks of the container. If the tables are missing, only the first is made.
pub(super) async fn check(client: &Client, config: &Config, findings: &mut Vec<Finding>) {
    let (finding, has_tables) =
        tables(client).await.unwrap_or_else(|e| (Finding::unseen("container.tables", &e), true));
    findings.push(finding);
    if !has_tables {
        return;
    }
    findings.push(dead(client).await.unwrap_or_else(|e| Finding::unseen("container.dead", &e)));
    findings.push(rollbacks(client, config).await.unwrap_or_else(|e| Finding::unseen("container.rollbacks", &e)));
    findings.push(breakers(client).await.unwrap_or_else(|e| Finding::unseen("container.breakers", &e)));
    findings.push(spools(client, config).await.unwrap_or_else(|e| Finding::unseen("container.spools", &e)));
    if let Some(path) = &config.container_config {
        match Declaration::read(path, &[], &environment) {
            Ok(declaration) => {
                let undeclared = undeclared(client, &declaration).await;
                findings.push(undeclared.unwrap_or_else(|e| Finding::unseen("container.declared", &e)));
                boards(&declaration, findings).await;
            }
            Err(complaint) => findings.push(Finding::fail(
                "container.declared",
                complaint.lines().join("; "),
                "the container does not start",
                "correct the file, or set the variables that it names; container --check reads it again",
            )),
        }
    }
}

/// The indexes that refuse a second unit of one file, of one key or of one number, and the tables that belong to them. Returns
/// also whether there are tables.
async fn tables(client: &Client) -> Result<(Finding, bool)> {
    const CHECK: &str = "container.tables";
    const APPLY: &str = "psql \"$DATABASE_URL\" -f schema.sql";
    let row = ask(
        client,
        "-- operator::doctor::container_tables
         SELECT string_agg(name, ', ' ORDER BY name), to_regclass('units') IS NOT NULL FROM (
             SELECT name FROM unnest(ARRAY['units_pkey', 'units_unit_key_key', 'units_spool_name_key', 'units_idempotency_key',
                                           'unit_parts_pkey', 'unit_reports_pkey', 'destinations_pkey', 'spools_pkey'])
                              AS wanted (name)
             WHERE NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(name) AND indisvalid AND indisunique)
             UNION ALL
             SELECT name FROM unnest(ARRAY['units_due', 'units_file', 'units_dead']) AS wanted (name)
             WHERE NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(name) AND indisvalid)
         ) AS missing",
    )
    .await?;
    let has_tables: bool = row.get(1);
    let finding = match row.get::<_, Option<&str>>(0) {
        None => Finding::ok(CHECK, "indexes are there"),
        Some(_) if !has_tables => Finding::fail(
            CHECK,
            "the tables are missing",
            "the container does not start",
            format!("{APPLY}, and ops/roles.sql"),
        ),
        Some(names) => Finding::fail(
            CHECK,
            format!("missing or invalid: {names}"),
            "one request would become two units, or each look for units would read all of them",
            format!("{APPLY}; before that, DROP an invalid index"),
        ),
    };
    Ok((finding, has_tables))
}

/// Units whose last attempt has failed.
async fn dead(client: &Client) -> Result<Finding> {
    const CHECK: &str = "container.dead";
    let rows = client
        .query(
            "-- operator::doctor::dead_units
             SELECT format('unit %s (%s %s): %s', uow, resource, subject, COALESCE(left(error, 200), 'no error')),
                    count(*) OVER ()
             FROM units WHERE state = 'dead' ORDER BY uow LIMIT $1",
            &[&NAMED_COUNT_MAX],
        )
        .await?;
    let Some(first) = rows.first() else { return Ok(Finding::ok(CHECK, "no unit waits for a person")) };
    let named: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    Ok(Finding::warn(
        CHECK,
        format!("{} units have used up their attempts: {}", first.get::<_, i64>(1), named.join("; ")),
        "no destination has them, and they are not tried again",
        "remove the cause that is named, then container units retry --all; or container units drop UOW",
    ))
}

/// Units whose parts cannot be taken back.
async fn rollbacks(client: &Client, config: &Config) -> Result<Finding> {
    const CHECK: &str = "container.rollbacks";
    let rows = client
        .query(
            "-- operator::doctor::rollbacks
             SELECT format('unit %s: %s', u.uow, COALESCE(left(u.error, 200), 'no error')), count(*) OVER ()
             FROM units AS u WHERE u.state = 'rolling_back' AND EXISTS (
                 SELECT FROM unit_reports AS r WHERE r.uow = u.uow AND r.attempt = u.attempt
                                                     AND r.created_at < now() - $1 * INTERVAL '1 second')
             ORDER BY u.uow LIMIT $2",
            &[&config.patience.as_secs_f64(), &NAMED_COUNT_MAX],
        )
        .await?;
    let Some(first) = rows.first() else { return Ok(Finding::ok(CHECK, "no unit is rolled back for long")) };
    let named: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    Ok(Finding::warn(
        CHECK,
        format!("{} units are still rolled back: {}", first.get::<_, i64>(1), named.join("; ")),
        "a destination may show a part of a unit that has failed",
        "see that a container runs, and bring back the destination that its log names (a part is not taken back yet)",
    ))
}

/// Destinations whose breakers are open.
async fn breakers(client: &Client) -> Result<Finding> {
    const CHECK: &str = "container.breakers";
    let row = ask(
        client,
        "-- operator::doctor::breakers
         SELECT string_agg(format('%s after %s failures', name, failure_count), ', ' ORDER BY name),
                (SELECT count(*) FROM (SELECT FROM units WHERE state IN ('queued', 'fail_queued') LIMIT 1000) AS waiting)
         FROM destinations WHERE open_until IS NOT NULL",
    )
    .await?;
    Ok(match row.get::<_, Option<&str>>(0) {
        None => Finding::ok(CHECK, "none is open"),
        Some(names) => Finding::warn(
            CHECK,
            format!("open: {names}; {} units wait (at most 1,000 are counted)", row.get::<_, i64>(1)),
            "requests that need it get 503, and their units wait",
            "bring the destination back; the container then closes the breaker by itself",
        ),
    })
}

/// Spools whose units are due, and are not taken: no container has this spool.
async fn spools(client: &Client, config: &Config) -> Result<Finding> {
    const CHECK: &str = "container.spools";
    let row = client
        .query_one(
            "-- operator::doctor::spools
             SELECT string_agg(format('%s (%s) for %s units', place, spool_id, unit_count), ', ' ORDER BY place) FROM (
                 SELECT s.place, s.spool_id, count(*) AS unit_count FROM (
                     SELECT spool_id FROM units
                     WHERE state IN ('queued', 'fanned_out', 'rolling_back', 'fail_queued')
                           AND due_at < now() - $1 * INTERVAL '1 second' ORDER BY due_at LIMIT 1000
                 ) AS late JOIN spools AS s ON s.spool_id = late.spool_id GROUP BY s.spool_id
             ) AS left_alone",
            &[&config.patience.as_secs_f64()],
        )
        .await?;
    Ok(match row.get::<_, Option<&str>>(0) {
        None => Finding::ok(CHECK, "each spool with open units has a container"),
        Some(spools) => Finding::warn(
            CHECK,
            format!("no container looks after {spools} (at most 1,000 units are counted)"),
            "these units were accepted, and nothing stores them",
            "start a container with CONTAINER_SPOOL at that place; if the folder is another one now, put its files back",
        ),
    })
}

/// Destinations that open units need, and that the file does not declare.
async fn undeclared(client: &Client, declaration: &Declaration) -> Result<Finding> {
    const CHECK: &str = "container.declared";
    let declared: Vec<&str> = declaration.destinations.keys().map(String::as_str).collect();
    let row = client
        .query_one(
            "-- operator::doctor::undeclared
             SELECT string_agg(DISTINCT p.destination, ', ')
             FROM (SELECT uow FROM units WHERE state IN ('queued', 'fanned_out', 'rolling_back', 'fail_queued')
                   ORDER BY due_at LIMIT 1000) AS open
             JOIN unit_parts AS p ON p.uow = open.uow WHERE p.destination <> ALL ($1::text[])",
            &[&declared],
        )
        .await?;
    Ok(match row.get::<_, Option<&str>>(0) {
        None => Finding::ok(CHECK, format!("{} destinations", declared.len())),
        Some(names) => Finding::fail(
            CHECK,
            format!("units are open that need {names}, and the file does not declare that"),
            "the container does not start",
            "declare it with retired = true until these units are settled: container units list",
        ),
    })
}

/// The Redis of each board: what was acknowledged must stay.
async fn boards(declaration: &Declaration, findings: &mut Vec<Finding>) {
    for destination in declaration.destinations.values() {
        if let Kind::Board { redis, .. } = &destination.kind {
            let finding = board(&destination.name, redis).await;
            findings.push(finding.unwrap_or_else(|e| Finding::unseen("container.board", &e)));
        }
    }
}

async fn board(name: &str, redis: &redis::Client) -> Result<Finding> {
    const CHECK: &str = "container.board";
    let mut connection = match stream::redis::connect(redis).await {
        Ok(connection) => connection,
        Err(error) => {
            return Ok(Finding::warn(
                CHECK,
                format!("{name}: {error:#}"),
                "units that need it wait",
                "start that Redis, or correct the variable that the declaration names",
            ));
        }
    };
    let info = info(&mut connection).await?;
    let value = |name: &str| info.get(name).map_or("", String::as_str);
    Ok(match (value("role"), value("maxmemory_policy")) {
        ("slave", _) => Finding::fail(
            CHECK,
            format!("{name}: its Redis is a replica"),
            "it refuses writes, so units that need it fail",
            "declare the primary",
        ),
        (_, "noeviction") => Finding::ok(CHECK, format!("{name}: a primary, maxmemory-policy is noeviction")),
        (_, policy) => Finding::warn(
            CHECK,
            format!("{name}: maxmemory-policy is {policy}"),
            "a full Redis evicts a register silently, and a late store or undo would then be carried out",
            "CONFIG SET maxmemory-policy noeviction",
        ),
    })
}
