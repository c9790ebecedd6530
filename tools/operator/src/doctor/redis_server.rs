//! The Redis server: whether it accepts writes, and whether it keeps the stream when memory or power runs out.

use std::collections::HashMap;

use anyhow::{Context, Error, Result};
use redis::aio::MultiplexedConnection;

use super::finding::Finding;
use super::redis_setting;

/// The part of maxmemory, in percent, from which on the doctor warns.
const MEMORY_USED_MAX_PERCENT: u64 = 80;

/// The finding that there is no connection. Servers older than 7.0 are refused, too.
pub(super) fn unreachable(error: &Error) -> Finding {
    Finding::fail(
        "redis.reachable",
        format!("{error:#}"),
        "no record is published; consumers read from Postgres, more slowly",
        "start Redis 7.0 or newer (or Valkey), or set REDIS_URL to where it is",
    )
}

/// All checks of the server.
pub(super) async fn check(redis: &mut MultiplexedConnection, findings: &mut Vec<Finding>) {
    let info = match info(redis).await {
        Ok(info) => info,
        Err(error) => return findings.push(Finding::unseen("redis.reachable", &error)),
    };
    let value = |name: &str| info.get(name).map_or("", String::as_str);
    findings.push(Finding::ok("redis.reachable", format!("version {}", value("redis_version"))));
    findings.push(role(value("role"), value("master_host")));
    findings.push(memory(number(&info, "used_memory"), number(&info, "maxmemory"), value("maxmemory_policy")));
    findings.push(eviction(value("maxmemory_policy")));
    findings.push(append_only(value("aof_enabled")));
    if value("aof_enabled") == "1" {
        findings.push(append_fsync(redis_setting(redis, "appendfsync").await.as_deref()));
    }
    findings.push(last_writes(&[
        ("rdb_last_bgsave_status", value("rdb_last_bgsave_status")),
        ("aof_last_write_status", value("aof_last_write_status")),
        ("aof_last_bgrewrite_status", value("aof_last_bgrewrite_status")),
    ]));
}

/// The fields of `INFO`, by name. Servers that forbid CONFIG allow INFO.
pub(super) async fn info(redis: &mut MultiplexedConnection) -> Result<HashMap<String, String>> {
    let text: String = redis::cmd("INFO").query_async(redis).await.context("asking for INFO")?;
    Ok(text.lines().filter_map(|line| line.split_once(':')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

fn number(info: &HashMap<String, String>, name: &str) -> u64 {
    info.get(name).and_then(|value| value.parse().ok()).unwrap_or(0)
}

fn role(role: &str, primary: &str) -> Finding {
    match role {
        "master" => Finding::ok("redis.role", "it is a primary"),
        _ => Finding::fail(
            "redis.role",
            format!("it is a replica of {primary}"),
            "the streamer cannot append: a replica refuses writes",
            "set REDIS_URL to the primary",
        ),
    }
}

fn memory(used_bytes: u64, max_bytes: u64, policy: &str) -> Finding {
    const CHECK: &str = "redis.memory";
    const FIX: &str = "raise it (CONFIG SET maxmemory), or lower the reaper's --stream-len-max";
    if max_bytes == 0 {
        return Finding::ok(CHECK, format!("{used_bytes} bytes used, no maxmemory"));
    }
    let what = format!("{used_bytes} of maxmemory {max_bytes} bytes used");
    match used_bytes * 100 / max_bytes {
        100.. if policy == "noeviction" => {
            Finding::fail(CHECK, what, "Redis refuses entries (OOM); consumers read from Postgres, more slowly", FIX)
        }
        MEMORY_USED_MAX_PERCENT.. => {
            Finding::warn(CHECK, what, "when it is full, Redis refuses entries or evicts the whole stream", FIX)
        }
        _ => Finding::ok(CHECK, what),
    }
}

fn eviction(policy: &str) -> Finding {
    const CHECK: &str = "redis.eviction";
    match policy {
        "noeviction" => Finding::ok(CHECK, "maxmemory-policy is noeviction"),
        "" => Finding::unseen(CHECK, &anyhow::anyhow!("INFO does not contain the policy")),
        _ => Finding::warn(
            CHECK,
            format!("maxmemory-policy is {policy}"),
            "a full Redis evicts the whole stream instead of refusing an entry, and the streamer builds it anew each time",
            "CONFIG SET maxmemory-policy noeviction",
        ),
    }
}

fn append_only(enabled: &str) -> Finding {
    const CHECK: &str = "redis.appendonly";
    match enabled {
        "1" => Finding::ok(CHECK, "appendonly is on"),
        "0" => Finding::warn(
            CHECK,
            "appendonly is off",
            "a restart loses entries since the last snapshot; the streamer publishes them again from Postgres",
            "CONFIG SET appendonly yes",
        ),
        _ => Finding::unseen(CHECK, &anyhow::anyhow!("INFO does not contain it")),
    }
}

fn append_fsync(setting: Option<&str>) -> Finding {
    const CHECK: &str = "redis.appendfsync";
    match setting {
        Some("everysec" | "always") => Finding::ok(CHECK, format!("appendfsync is {}", setting.unwrap_or_default())),
        Some(other) => Finding::warn(
            CHECK,
            format!("appendfsync is {other}"),
            "a power cut loses up to half a minute of entries; the streamer publishes them again from Postgres",
            "CONFIG SET appendfsync everysec",
        ),
        None => Finding::unseen(CHECK, &anyhow::anyhow!("CONFIG is forbidden here")),
    }
}

fn last_writes(statuses: &[(&str, &str)]) -> Finding {
    const CHECK: &str = "redis.disk";
    let failed: Vec<&str> =
        statuses.iter().filter(|(_, status)| !["ok", ""].contains(status)).map(|(name, _)| *name).collect();
    if failed.is_empty() {
        return Finding::ok(CHECK, "the last writes to disk succeeded");
    }
    Finding::fail(
        CHECK,
        format!("{} failed", failed.join(", ")),
        "Redis refuses entries (MISCONF) while it cannot write to disk, or loses the stream at a restart",
        "free space on the disk of Redis and read its log; then run BGSAVE or BGREWRITEAOF",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_failed_write_to_disk_is_named() {
        let finding = last_writes(&[("rdb_last_bgsave_status", "ok"), ("aof_last_write_status", "err")]);
        assert_eq!((finding.verdict, finding.what.as_str()), (Verdict::Fail, "aof_last_write_status failed"));
    }

    #[test]
    fn what_info_does_not_tell_is_not_called_well() {
        assert_eq!(eviction("").verdict, Verdict::Warn);
        assert_eq!(append_only("").verdict, Verdict::Warn);
    }
}
