//! The leaders: whether each partition has one while a streamer lives (P2).

use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{LEADER_LOCK, MEMBER_LOCK, Partition};
use tokio::time::sleep;

use super::finding::Finding;
use super::{Log, named};

/// Streamers hand partitions over within two seconds. A partition that no streamer leads for longer is told.
const HAND_OVER_WAIT: Duration = Duration::from_secs(3);

/// The check. Without a streamer there is nothing to compare.
pub(super) async fn check(client: &Client, log: &Log) -> Result<Finding> {
    const CHECK: &str = "log.leaders";
    let mut led = led(client, log).await?;
    if !led.unled.is_empty() && led.streamer_count > 0 {
        sleep(HAND_OVER_WAIT).await;
        let before = led.unled;
        led = self::led(client, log).await?;
        led.unled.retain(|partition| before.contains(partition));
    }
    let Led { unled, streamer_count } = led;
    if streamer_count == 0 {
        return Ok(Finding::ok(CHECK, "no streamer runs now"));
    }
    if unled.is_empty() {
        let what = format!("{streamer_count} streamers lead {} partitions", log.partitions.len());
        return Ok(Finding::ok(CHECK, if log.is_cut() { what } else { "a streamer leads".to_owned() }));
    }
    Ok(Finding::warn(
        CHECK,
        format!("of {streamer_count} streamers none leads {}", named(&unled)),
        "records of these partitions get no offset, and wait",
        "start a streamer without --partitions, or add these to --partitions of one",
    ))
}

struct Led {
    /// The partitions without a leader.
    unled: Vec<Partition>,
    /// Streamers that lead, or stand by.
    streamer_count: i64,
}

async fn led(client: &Client, log: &Log) -> Result<Led> {
    let row = client
        .query_one(
            "-- operator::doctor::leaders
             WITH held AS (
                 SELECT classid = (($2 # log_key())::bigint & 4294967295)::oid AS leads, objid::bigint AS partition, pid
                 FROM pg_locks
                 WHERE locktype = 'advisory' AND objsubid = 2 AND granted
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                   AND classid IN ((($2 # log_key())::bigint & 4294967295)::oid,
                                   (($3 # log_key())::bigint & 4294967295)::oid)
             )
             SELECT array_agg(p ORDER BY p) FILTER (WHERE p NOT IN (SELECT partition FROM held WHERE leads)),
                    (SELECT count(DISTINCT pid) FROM held)
             FROM unnest($1::int[]) AS p",
            &[&log.partitions, &LEADER_LOCK, &MEMBER_LOCK],
        )
        .await
        .context("looking for leaders")?;
    Ok(Led { unled: row.get::<_, Option<_>>(0).unwrap_or_default(), streamer_count: row.get(1) })
}
