//! The wallets: whether the tables keep their promises, whether a consumer keeps the documents, and whether Redis keeps them.

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Partition;
use redis::aio::MultiplexedConnection;
use wallet::model::{Doubt, Mark, Run, find_doubt, mark_key};

use super::finding::Finding;
use super::redis_server::info;
use super::{Config, Log, ask};

/// All checks of wallets. Those of Redis are made only if wallets are used. If the tables are missing, only the first is made.
pub(super) async fn check(client: &Client, config: &Config, log: &Log, findings: &mut Vec<Finding>) {
    let (finding, has_tables) = tables(client).await.unwrap_or_else(|e| (Finding::unseen("wallets.tables", &e), true));
    findings.push(finding);
    if !has_tables {
        return;
    }
    let usage = match usage(client, log).await {
        Ok(usage) => usage,
        Err(error) => return findings.push(Finding::unseen("wallets.projector", &error)),
    };
    findings.push(projector(&usage));
    if usage.has_wallets || !usage.checkpoints.is_empty() {
        let server = config.wallets.wallets_redis_url.as_ref().unwrap_or(config.stream.redis_url.first());
        match stream::redis::connect(server).await {
            Ok(mut redis) => {
                findings.push(server_of(&mut redis).await.unwrap_or_else(|e| Finding::unseen("wallets.redis", &e)));
                let found = mark(client, &mut redis, config, log, &usage).await;
                findings.push(found.unwrap_or_else(|error| Finding::unseen("wallets.mark", &error)));
            }
            Err(error) => findings.push(Finding::warn(
                "wallets.redis",
                format!("{error:#}"),
                "every read of a wallet asks Postgres, which is slower",
                "start it, or set WALLETS_REDIS_URL (without it: REDIS_URL) to where it is",
            )),
        }
    }
}

/// The indexes that refuse a second event of one version or of one key, and the triggers that refuse every change. Returns also
/// whether there are tables.
async fn tables(client: &Client) -> Result<(Finding, bool)> {
    const CHECK: &str = "wallets.tables";
    const APPLY: &str = "psql \"$DATABASE_URL\" -f schema.sql";
    let row = ask(
        client,
        "-- operator::doctor::wallet_tables
         SELECT string_agg(name, ', ' ORDER BY name), to_regclass('wallet_events') IS NOT NULL FROM (
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
    let has_tables: bool = row.get(1);
    let finding = match row.get::<_, Option<&str>>(0) {
        None => Finding::ok(CHECK, "indexes and triggers are there"),
        Some(_) if !has_tables => Finding::fail(
            CHECK,
            "the tables are missing",
            "the api is not ready, and refuses all commands for wallets; consumer wallets does not start",
            format!("{APPLY}, and ops/roles.sql"),
        ),
        Some(names) => Finding::fail(
            CHECK,
            format!("missing, invalid or switched off: {names}"),
            "the tables would take two events of one version or of one key, or would let events be changed",
            format!("{APPLY}; before that, DROP an invalid index and ENABLE a trigger that is switched off"),
        ),
    };
    Ok((finding, has_tables))
}

/// Who uses wallets.
struct Usage {
    has_wallets: bool,
    /// The consumers that keep the documents.
    projectors: Option<String>,
    /// Their highest checkpoint in each partition.
    checkpoints: Vec<(Partition, i64)>,
}

async fn usage(client: &Client, log: &Log) -> Result<Usage> {
    let row = client
        .query_one(
            "-- operator::doctor::wallet_usage
             SELECT EXISTS (SELECT FROM wallet_locks), (SELECT string_agg(DISTINCT name, ', ' ORDER BY name) FROM checkpoints
                                                        WHERE fold = 'wallets' AND partition = ANY ($1)),
                    array_agg(partition ORDER BY partition), array_agg(last_offset ORDER BY partition)
             FROM (SELECT partition, max(last_offset) AS last_offset FROM checkpoints
                   WHERE fold = 'wallets' AND partition = ANY ($1) GROUP BY partition) AS places",
            &[&log.partitions],
        )
        .await?;
    let (partitions, offsets): (Option<Vec<Partition>>, Option<Vec<i64>>) = (row.get(2), row.get(3));
    let checkpoints = partitions.unwrap_or_default().into_iter().zip(offsets.unwrap_or_default()).collect();
    Ok(Usage { has_wallets: row.get(0), projectors: row.get(1), checkpoints })
}

/// A consumer keeps the documents in Redis.
fn projector(usage: &Usage) -> Finding {
    const CHECK: &str = "wallets.projector";
    match usage {
        Usage { projectors: Some(names), .. } => Finding::ok(CHECK, format!("registered: {names}")),
        Usage { has_wallets: false, .. } => Finding::ok(CHECK, "no wallet is used"),
        Usage { .. } => Finding::warn(
            CHECK,
            "wallets are used, and no consumer with the fold wallets is registered",
            "without it there is no mark in Redis, no document is written, and every read of a wallet asks Postgres",
            "start one: consumer wallets --fold wallets",
        ),
    }
}

/// The server of the documents: one script changes many of them, and none may be evicted alone.
async fn server_of(redis: &mut MultiplexedConnection) -> Result<Finding> {
    const CHECK: &str = "wallets.redis";
    let info = info(redis).await?;
    let value = |name: &str| info.get(name).map_or("", String::as_str);
    // Valkey has no `redis_mode`.
    Ok(match (value("cluster_enabled"), value("role"), value("maxmemory_policy")) {
        ("1", ..) => Finding::fail(
            CHECK,
            "it is a node of a Redis Cluster",
            "one script changes documents of many wallets together with the mark, and a cluster refuses that",
            "set WALLETS_REDIS_URL to a server of its own",
        ),
        (_, "slave", _) => Finding::fail(
            CHECK,
            "it is a replica",
            "it refuses writes: every read of a wallet asks Postgres",
            "set WALLETS_REDIS_URL to the primary",
        ),
        (.., "noeviction") => Finding::ok(CHECK, "a primary, no cluster, maxmemory-policy is noeviction"),
        (.., policy) => Finding::warn(
            CHECK,
            format!("maxmemory-policy is {policy}"),
            "a full Redis evicts documents, or the mark, after which all documents are built anew",
            "CONFIG SET maxmemory-policy noeviction",
        ),
    })
}

/// The mark is there, and the projector has no reason to doubt it.
async fn mark(
    client: &Client,
    redis: &mut MultiplexedConnection,
    config: &Config,
    log: &Log,
    usage: &Usage,
) -> Result<Finding> {
    const CHECK: &str = "wallets.mark";
    const FIX: &str =
        "see that consumer wallets runs: it begins a new epoch and builds all documents again, within seconds";
    if usage.checkpoints.is_empty() {
        return Ok(Finding::ok(CHECK, "no consumer keeps documents"));
    }
    let key = mark_key(&config.stream.stream_name);
    let text: Option<String> = redis::cmd("GET").arg(&key).query_async(redis).await.context("reading the mark")?;
    let mark: Option<Mark> = text.as_deref().and_then(|text| text.parse().ok());
    let server: String = redis::cmd("INFO").arg("server").query_async(redis).await.context("asking for the run")?;
    let run = Run::of_info(&server).context("INFO does not contain the run")?;
    let doubt = find_doubt(client, mark.as_ref(), (run, None), &usage.checkpoints).await?;
    let checkpoint: i64 = usage.checkpoints.iter().map(|(_, offset)| offset).sum();
    let head: i64 = pglog::heads(client, &log.partitions).await?.iter().sum();
    let what = format!("{key} is {}, checkpoint {checkpoint}, head {head}", text.as_deref().unwrap_or("missing"));
    Ok(match doubt {
        None => Finding::ok(CHECK, what),
        Some(doubt @ (Doubt::NoMark | Doubt::OtherRun)) => {
            let why = "readers believe no document, and ask Postgres for every wallet";
            Finding::warn(CHECK, format!("{what}: {doubt}"), why, FIX)
        }
        Some(doubt) => {
            let why = "documents may be older than Postgres, or show a past that is gone";
            Finding::warn(CHECK, format!("{what}: {doubt}"), why, FIX)
        }
    })
}
