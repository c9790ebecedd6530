//! The limits of Redis: appending by redis-benchmark, and reading by a client that ignores the entries.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::bench::{Bench, STREAM};
use crate::tools;

/// The name of the first limit in the report.
pub(crate) const XADD: &str = "redis-benchmark XADD -P 1000";

/// The name of the second limit in the report.
pub(crate) const XRANGE: &str = "bare XRANGE COUNT 1000";

/// Appends `count` entries like the streamer's in pipelines of 1000 over one connection. Returns entries per second.
///
/// # Errors
/// redis-benchmark is not here, or fails.
pub(crate) async fn xadd(bench: &Bench, count: i64) -> Result<f64> {
    let mut command = Command::new(tools::redis_benchmark()?);
    command.arg("-s").arg(bench.redis_socket());
    command.args(["-c", "1", "-P", "1000", "-n", &count.to_string(), "--csv", "XADD", STREAM, "*"]);
    command.args(["about", "4611686018427387904 1764000000000000 4 ride create"]);
    command.args(["data", r#"{"id":1234567,"distance_mm":512345}"#]);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.context("running redis-benchmark")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "redis-benchmark failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    let rate = parse_csv(&text).with_context(|| format!("redis-benchmark printed no result: {}", text.trim()))?;
    let added_count = bench.stream_len().await?;
    ensure!(added_count >= count, "redis-benchmark added {added_count} entries of {count}");
    Ok(rate)
}

/// Reads the stream once. Returns entries per second.
///
/// # Errors
/// The stream does not have `count` entries.
pub(crate) async fn xrange(bench: &Bench, reader: &Path, count: i64) -> Result<f64> {
    let mut command = Command::new(reader);
    command.arg(bench.redis_socket()).arg(STREAM).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.context("running the bare reader")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words = String::from_utf8_lossy(&output.stderr);
    let (entries, seconds) = text.trim().split_once(' ').with_context(|| format!("no result: {}", words.trim()))?;
    let (entries, seconds): (i64, f64) = (entries.parse()?, seconds.parse()?);
    ensure!(entries == count, "the bare reader found {entries} entries of {count}");
    Ok(entries as f64 / seconds)
}

/// The second column of the second line. Columns are counted from the right, because the first column is the command, which
/// contains quotes.
fn parse_csv(output: &str) -> Option<f64> {
    let mut lines = output.lines().filter(|line| line.starts_with('"'));
    let columns = lines.next()?.split("\",\"").count();
    lines.next()?.rsplit("\",\"").nth(columns.checked_sub(2)?)?.trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse_csv;

    #[test]
    fn the_rate_is_found_behind_a_command_with_quotes() {
        let header = r#""test","rps","avg_latency_ms","min_latency_ms""#;
        let line = r#""XADD s * data {"id":1,"distance_mm":2}","538068.50","1.6","0.5""#;
        assert_eq!(parse_csv(&format!("{header}\n{line}\n")), Some(538_068.5));
        assert_eq!(parse_csv(&format!("{header}\n")), None);
        assert_eq!(parse_csv("\"test\",\"rps\"\n\"XADD\",\"12.5\"\n"), Some(12.5));
    }
}
