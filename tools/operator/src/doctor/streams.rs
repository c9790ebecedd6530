//! The streams: whether each key holds a stream of this log, and whether it ends no later than its partition.

use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Partition;
use redis::aio::MultiplexedConnection;
use stream::end::StreamEnd;
use stream::placement::Placement;
use stream::wire::Wire;

use super::finding::Finding;
use super::redis_node::address;
use super::{Config, Log, named};

const CHECK: &str = "redis.stream";

/// The checks of the streams. All servers are reached from here as from the processes: by the addresses that the nodes name.
pub(super) async fn check(postgres: Option<&Client>, config: &Config, log: &Log, findings: &mut Vec<Finding>) {
    let Placement { nodes, lost } = Placement::find(&config.stream.redis_url, &log.stream, &log.partitions).await;
    let mut found: Vec<(Partition, Finding)> =
        lost.into_iter().map(|(partition, error)| (partition, Finding::unseen(CHECK, &error))).collect();
    for (node, partitions) in &nodes {
        let mut connected = stream::redis::connect(node).await;
        for partition in partitions {
            let finding = match &mut connected {
                Ok(redis) => examine(redis, node, postgres, *partition, log).await,
                Err(error) => Err(anyhow::anyhow!("{error:#}")),
            };
            found.push((*partition, finding.unwrap_or_else(|error| Finding::unseen(CHECK, &error))));
        }
    }
    found.sort_by_key(|(partition, _)| *partition);
    findings.extend(log.gather(found));
    if nodes.len() > 1 {
        let places: Vec<String> =
            nodes.iter().map(|(node, partitions)| format!("{} has {}", address(node), named(partitions))).collect();
        findings.push(Finding::ok("redis.placement", places.join("; ")));
    }
}

async fn examine(
    redis: &mut MultiplexedConnection,
    node: &redis::Client,
    postgres: Option<&Client>,
    partition: Partition,
    log: &Log,
) -> Result<Finding> {
    let key = log.stream.key(partition);
    let kind: String = redis::cmd("TYPE").arg(&key).query_async(redis).await.context("asking for the key's type")?;
    match kind.as_str() {
        "none" => return Ok(Finding::ok(CHECK, format!("{key} does not exist yet"))),
        "stream" => {}
        _ => {
            return Ok(Finding::fail(
                CHECK,
                format!("the key {key} holds a {kind}"),
                "the streamer stops: it cannot append to it",
                format!("set STREAM_NAME to another name, or look at the key and `RENAME {key} {key}:old`"),
            ));
        }
    }
    let mut wire = Wire::connect(node, Duration::ZERO).await?;
    let end = StreamEnd::read(&mut wire, &key).await.context("asking for the stream's end")?;
    let last_id = &end.id;
    let Some(postgres) = postgres else { return Ok(Finding::ok(CHECK, format!("{key} ends at {last_id}"))) };
    // The head is read after the end of the stream: every published record had its offset before it was published.
    let head = pglog::head(postgres, partition).await?;
    let found = if end.offset > head {
        format!("{key} ends at {last_id}, and the head of the log is {head}")
    } else if is_strange(&end, postgres, partition).await? {
        format!("{key} ends at {last_id} with an entry that does not carry the token of the record at its offset")
    } else {
        return Ok(Finding::ok(CHECK, format!("{key} ends at {last_id}, the head of the log is {head}")));
    };
    Ok(Finding::warn(
        CHECK,
        found,
        "its last entries belong to another log: Postgres was restored, or another program wrote them; Redis refuses new entries",
        "start a streamer: it renames the stream and builds it anew, see docs/RESTORE.md",
    ))
}

async fn is_strange(end: &StreamEnd, postgres: &Client, partition: Partition) -> Result<bool> {
    let Some(offset) = end.entry_offset() else { return Ok(false) };
    let token = pglog::token_at(postgres, partition, offset).await?;
    Ok(token.is_some_and(|token| end.is_foreign(token)))
}
