//! The clocks of the servers. The reaper decides by them which records are old enough to be removed, and people read lags
//! that were measured with them. No other decision depends on a clock.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use redis::aio::MultiplexedConnection;

use super::ask;
use super::finding::Finding;
use super::redis_node::Node;

/// The largest difference of two clocks that is no warning.
const SKEW_MAX: Duration = Duration::from_secs(1);

/// The check of the clocks.
pub(super) async fn check(postgres: &Client, nodes: &mut [Node], findings: &mut Vec<Finding>) {
    findings.push(judge("clock.postgres", postgres_ahead_s(postgres).await));
    for node in nodes {
        let finding = judge("clock.redis", redis_ahead_s(&mut node.redis).await);
        findings.push(node.named(finding));
    }
}

fn judge(check: &'static str, ahead_s: Result<f64>) -> Finding {
    match ahead_s {
        Err(error) => Finding::unseen(check, &error),
        Ok(ahead_s) if ahead_s.abs() <= SKEW_MAX.as_secs_f64() => {
            Finding::ok(check, format!("it differs from this machine's by {:.3} s", ahead_s.abs()))
        }
        Ok(ahead_s) => Finding::warn(
            check,
            format!(
                "it is {:.1} s {} this machine's",
                ahead_s.abs(),
                if ahead_s > 0.0 { "ahead of" } else { "behind" }
            ),
            "lags in ms are wrong by as much, and the logs of two machines cannot be put in order; totals stay right",
            "synchronize the machines' clocks, for example with chrony",
        ),
    }
}

async fn postgres_ahead_s(postgres: &Client) -> Result<f64> {
    let asked_at = SystemTime::now();
    let row = ask(
        postgres,
        "-- operator::doctor::postgres_ahead_s
         SELECT extract(epoch FROM clock_timestamp())::float8",
    )
    .await?;
    Ok(row.get::<_, f64>(0) - middle_s(asked_at)?)
}

async fn redis_ahead_s(redis: &mut MultiplexedConnection) -> Result<f64> {
    let asked_at = SystemTime::now();
    let (seconds, micros): (String, String) =
        redis::cmd("TIME").query_async(redis).await.context("asking for Redis's time")?;
    Ok(seconds.parse::<f64>()? + micros.parse::<f64>()? / 1e6 - middle_s(asked_at)?)
}

/// The time half way between a request, sent at `asked_at`, and its response, which has just arrived.
fn middle_s(asked_at: SystemTime) -> Result<f64> {
    let half = asked_at.elapsed().unwrap_or_default() / 2;
    Ok((asked_at + half)
        .duration_since(SystemTime::UNIX_EPOCH)
        .context("this machine's clock is before 1970")?
        .as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_clock_that_is_a_second_off_is_worth_a_warning() {
        assert_eq!(judge("clock.redis", Ok(0.9)).verdict, Verdict::Ok);
        let finding = judge("clock.redis", Ok(-3.25));
        assert_eq!(finding.verdict, Verdict::Warn);
        assert!(finding.what.contains("3.2 s behind this machine's"), "{}", finding.what);
    }
}
