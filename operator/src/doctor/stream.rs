//! The stream: whether its key is ours, and whether it ends where the log does.

use anyhow::{Context, Result};
use common::stream::EntryId;
use redis::aio::MultiplexedConnection;
use tokio_postgres::Client;

use super::Config;
use super::finding::Finding;

const CHECK: &str = "redis.stream";

/// The check of the stream.
pub(super) async fn check(
    redis: &mut MultiplexedConnection,
    postgres: Option<&Client>,
    config: &Config,
    findings: &mut Vec<Finding>,
) {
    let found = examine(redis, postgres, config).await;
    findings.push(found.unwrap_or_else(|error| Finding::unseen(CHECK, &error)));
}

async fn examine(redis: &mut MultiplexedConnection, postgres: Option<&Client>, config: &Config) -> Result<Finding> {
    let key = config.stream.key();
    let kind: String = redis::cmd("TYPE").arg(&key).query_async(redis).await.context("asking for the key's type")?;
    match kind.as_str() {
        "none" => return Ok(Finding::ok(CHECK, format!("{key} is not there yet"))),
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
    let info: std::collections::HashMap<String, redis::Value> =
        redis::cmd("XINFO").arg("STREAM").arg(&key).query_async(redis).await.context("asking for the stream's end")?;
    let last_id = info.get("last-generated-id").context("XINFO STREAM has no last-generated-id")?;
    let last_id: String = redis::from_redis_value_ref(last_id).context("reading the stream's end")?;
    let Some(postgres) = postgres else { return Ok(Finding::ok(CHECK, format!("{key} ends at {last_id}"))) };
    // Read after the stream's end, as the streamer does: what it published was assigned before.
    let head = pglog::head(postgres, config.stream.partition).await?;
    if EntryId::parse(&last_id)?.offset > head {
        return Ok(Finding::warn(
            CHECK,
            format!("{key} ends at {last_id}, and the head of the log is {head}"),
            "its last entries are of another log: Postgres was restored, or somebody else wrote them; Redis refuses ours",
            "start a streamer: it sets the stream aside and builds it anew, see docs/RESTORE.md",
        ));
    }
    Ok(Finding::ok(CHECK, format!("{key} ends at {last_id}, the head of the log is {head}")))
}
