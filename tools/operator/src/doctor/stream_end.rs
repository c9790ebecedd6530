//! The stream: whether its key holds a stream of this log, and whether it ends no later than the log.

use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use redis::aio::MultiplexedConnection;
use stream::end::StreamEnd;
use stream::wire::Wire;

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
    let mut wire = Wire::connect(config.stream.redis_url.first(), Duration::ZERO).await?;
    let end = StreamEnd::read(&mut wire, &key).await.context("asking for the stream's end")?;
    let last_id = &end.id;
    let Some(postgres) = postgres else { return Ok(Finding::ok(CHECK, format!("{key} ends at {last_id}"))) };
    // The head is read after the end of the stream: every published record had its offset before it was published.
    let head = pglog::head(postgres, config.stream.partition()).await?;
    let found = if end.offset > head {
        format!("{key} ends at {last_id}, and the head of the log is {head}")
    } else if is_strange(&end, postgres, config).await? {
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

async fn is_strange(end: &StreamEnd, postgres: &Client, config: &Config) -> Result<bool> {
    let Some(offset) = end.entry_offset() else { return Ok(false) };
    let token = pglog::token_at(postgres, config.stream.partition(), offset).await?;
    Ok(token.is_some_and(|token| end.is_foreign(token)))
}
