//! The log: its version, its cluster, the consumers' progress, dead letters, receipts, and the history.

use anyhow::Result;
use deadpool_postgres::ClientWrapper as Client;
use pglog::Partition;

use super::finding::Finding;
use super::{Config, Log, ask, history, leaders, named, partitions};

/// At most this many receipts are counted.
const COUNT_MAX: i64 = 1000;

/// All checks of the log. If the tables are missing, only the first is made.
pub(super) async fn check(client: &Client, config: &Config, log: &Log, findings: &mut Vec<Finding>) {
    let (finding, has_tables) = identity(client).await;
    findings.push(finding);
    if has_tables {
        findings.push(partitions::check(client, log).await.unwrap_or_else(|e| Finding::unseen("log.partitions", &e)));
        findings.push(leaders::check(client, log).await.unwrap_or_else(|e| Finding::unseen("log.leaders", &e)));
        findings.push(ids(client).await.unwrap_or_else(|e| Finding::unseen("log.ids", &e)));
        findings.push(consumers(client, config, log).await.unwrap_or_else(|e| Finding::unseen("log.consumers", &e)));
        findings
            .push(dead_letters(client, config, log).await.unwrap_or_else(|e| Finding::unseen("log.dead_letters", &e)));
        findings.push(receipts(client).await.unwrap_or_else(|e| Finding::unseen("receipts", &e)));
        findings.push(history::folds(client, log).await.unwrap_or_else(|e| Finding::unseen("log.folds", &e)));
        let history = history::history(client, log).await;
        findings.extend(history.unwrap_or_else(|e| vec![Finding::unseen("log.history", &e)]));
    }
}

/// The finding, and whether the tables exist.
async fn identity(client: &Client) -> (Finding, bool) {
    const CHECK: &str = "log.identity";
    const REFUSED: &str = "streamer, consumer and reaper refuse to work";
    let wanted = pglog::SCHEMA_VERSION;
    let apply = "psql \"$DATABASE_URL\" -f schema.sql";
    match pglog::identity(client).await {
        Err(pglog::Error::SchemaMissing) => {
            (Finding::fail(CHECK, "the tables are missing", "no process can work", apply), false)
        }
        // The other checks would meet texts that cannot be read.
        Err(error @ pglog::Error::Encoding { .. }) => {
            let fix = "move the log, as docs/RESTORE.md says (A database in another encoding)";
            (Finding::fail(CHECK, error.to_string(), REFUSED, fix), false)
        }
        Err(error) => (Finding::unseen(CHECK, &anyhow::Error::new(error)), true),
        Ok(pglog::Identity { schema_version: found, .. }) if found != wanted => {
            let fix = if found < wanted { apply } else { "upgrade the programs" };
            let what = format!("the tables are of version {found}, these programs of version {wanted}");
            (Finding::fail(CHECK, what, REFUSED, fix), true)
        }
        Ok(identity) if !identity.is_of_this_cluster() => {
            let (log_cluster, this_cluster) = (identity.log_cluster, identity.this_cluster);
            let what = format!("the log belongs to the cluster {log_cluster}, and this is {this_cluster}");
            (Finding::fail(CHECK, what, REFUSED, "run `adopt`, see docs/RESTORE.md"), true)
        }
        Ok(identity) => {
            let what = format!("version {wanted}, of this cluster ({})", identity.this_cluster);
            (Finding::ok(CHECK, what), true)
        }
    }
}

/// Records that wait for their offsets get them in the order of their ids. A sequence that caches ids hands blocks of them to
/// sessions, and then a later record may have a lower id.
async fn ids(client: &Client) -> Result<Finding> {
    const CHECK: &str = "log.ids";
    let row = ask(
        client,
        "-- operator::doctor::ids
         SELECT seqcache FROM pg_sequence WHERE seqrelid = pg_get_serial_sequence('staged_log_records', 'id')::regclass",
    )
    .await?;
    Ok(match row.get::<_, i64>(0) {
        1 => Finding::ok(CHECK, "no session draws ids in advance"),
        cache_len => Finding::warn(
            CHECK,
            format!("each session draws {cache_len} ids at a time"),
            "a record that was staged later may get a lower offset: the log shows the versions of a wallet out of order",
            "ALTER TABLE staged_log_records ALTER COLUMN id SET CACHE 1",
        ),
    })
}

async fn consumers(client: &Client, config: &Config, log: &Log) -> Result<Finding> {
    const CHECK: &str = "log.consumers";
    let option = config.stream.partitions.argument();
    let registered = client
        .query(
            "-- operator::doctor::consumers
             SELECT name, is_baseline, array_agg(partition ORDER BY partition) FROM checkpoints WHERE partition = ANY ($1)
             GROUP BY name, is_baseline ORDER BY name",
            &[&log.partitions],
        )
        .await?;
    if registered.is_empty() {
        return Ok(Finding::warn(
            CHECK,
            "no consumer is registered",
            "the reaper deletes no record, and the log grows without limit",
            format!("start one: consumer consumer0{option}"),
        ));
    }
    let laggards = reaper::laggards(client, &log.partitions, config.patience).await?;
    if let Some(first) = laggards.first() {
        let by_name = laggards.chunk_by(|one, next| one.name == next.name);
        let named: Vec<String> = by_name.map(|laggards| laggard(laggards, log)).collect();
        return Ok(Finding::warn(
            CHECK,
            format!("does not move: {}", named.join(", ")),
            "the reaper cannot delete records that such a consumer has not passed",
            format!("start it, or remove it: consumer {} --unregister{option}", process::quoted(&first.name)),
        ));
    }
    let consumers = registered.iter().filter(|row| !row.get::<_, bool>(1));
    let partly: Vec<String> = consumers
        .map(|row| (row.get::<_, &str>(0), row.get::<_, Vec<Partition>>(2)))
        .filter(|(_, partitions)| partitions.len() < log.partitions.len())
        .map(|(name, partitions)| format!("{name} ({} only)", named(&partitions)))
        .collect();
    if !partly.is_empty() {
        return Ok(Finding::warn(
            CHECK,
            format!("registered in some of {} partitions: {}", log.partitions.len(), partly.join(", ")),
            "its total lacks the other partitions, and where no other consumer is registered the reaper deletes nothing",
            "start it for all partitions: without --partitions, or with those that are missing",
        ));
    }
    Ok(Finding::ok(CHECK, format!("{} registered, each of them moves or is at the head", registered.len())))
}

/// A consumer that does not move, in words.
fn laggard(laggards: &[reaper::Laggard], log: &Log) -> String {
    let partitions: Vec<Partition> = laggards.iter().map(|laggard| laggard.partition).collect();
    let (name, places) = (&laggards[0].name, log.places(&partitions));
    let lag: i64 = laggards.iter().map(|laggard| laggard.lag).sum();
    let still_s = laggards.iter().map(|laggard| laggard.still_s).max().unwrap_or_default();
    format!("{name} ({lag} records behind{places}, still for {still_s} s)")
}

async fn dead_letters(client: &Client, config: &Config, log: &Log) -> Result<Finding> {
    const CHECK: &str = "log.dead_letters";
    let row = client
        .query_one(
            "-- operator::doctor::dead_letters
             SELECT count(*) FILTER (WHERE dropped_at IS NULL),
                    string_agg(DISTINCT name, ', ') FILTER (WHERE dropped_at IS NULL), count(dropped_at),
                    array_agg(DISTINCT partition) FILTER (WHERE dropped_at IS NULL)
             FROM dead_letters WHERE partition = ANY ($1)",
            &[&log.partitions],
        )
        .await?;
    let (dead_letter_count, dropped_count): (i64, i64) = (row.get(0), row.get(2));
    Ok(match row.get::<_, Option<String>>(1) {
        None if dropped_count == 0 => Finding::ok(CHECK, "none"),
        None => Finding::ok(CHECK, format!("none that is not settled; {dropped_count} are dropped")),
        Some(names) => Finding::warn(
            CHECK,
            format!("{dead_letter_count} of {names}{}", log.places(&row.get::<_, Vec<Partition>>(3))),
            "these records had no effect on the state of their consumer",
            format!(
                "look at them: dead-letters list{}; then replay them with a corrected fold, or drop them; fix the program \
                 that stages such records",
                config.stream.partitions.argument()
            ),
        ),
    })
}

async fn receipts(client: &Client) -> Result<Finding> {
    const CHECK: &str = "receipts";
    let exists = ask(client, "-- operator::doctor::has_receipts\nSELECT to_regclass('receipts') IS NOT NULL").await?;
    if !exists.get::<_, bool>(0) {
        return Ok(Finding::ok(CHECK, "this log has none"));
    }
    let row = client
        .query_one(
            "-- operator::doctor::receipts
             SELECT count(*) FROM (SELECT FROM receipts WHERE delivered_at IS NULL AND next_attempt_at = 'infinity'
                                   LIMIT $1) AS put_aside",
            &[&COUNT_MAX],
        )
        .await?;
    Ok(match row.get::<_, i64>(0) {
        0 => Finding::ok(CHECK, "none is put aside"),
        count => Finding::warn(
            CHECK,
            format!("{}{count} are put aside", if count == COUNT_MAX { "at least " } else { "" }),
            "the mail server or the folder refused them for the last time, and their users have no receipt",
            "look at the reasons: dead-letters receipts; mend the cause, then dead-letters resend --all",
        ),
    })
}
