//! pgbench: the limit of Postgres when every ride is its own transaction, into the same tables.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::bench::Bench;
use crate::tools;

/// The usual way to write a ride and its record: two statements in one transaction.
pub(crate) const TWO_INSERTS: &str = r#"\set distance_mm random(5000, 999999)
BEGIN;
INSERT INTO rides (distance_mm) VALUES (:distance_mm) RETURNING id \gset
INSERT INTO staged_log_records (object, action, data) VALUES ('ride', 'create', format('{"id":%s,"distance_mm":%s}', :id::bigint, :distance_mm::bigint)::json);
COMMIT;
"#;

/// The fastest way: one statement that writes both.
pub(crate) const ONE_STATEMENT: &str = r#"\set distance_mm random(5000, 999999)
WITH written AS (INSERT INTO rides (distance_mm) VALUES (:distance_mm) RETURNING id, distance_mm) INSERT INTO staged_log_records (object, action, data) SELECT 'ride', 'create', format('{"id":%s,"distance_mm":%s}', id, distance_mm)::json FROM written;
"#;

/// The figures of pgbench.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Outcome {
    /// Transactions per second.
    pub rate: f64,
    /// Their mean latency, in ms.
    pub latency_ms: f64,
}

/// Runs `script` with prepared statements on fresh tables.
///
/// # Errors
/// pgbench is not here, or a transaction failed.
pub(crate) async fn run(bench: &Bench, script: &str, clients: u32) -> Result<Outcome> {
    bench.fresh_tables().await?;
    run_on_tables(bench, script, clients).await
}

/// Runs `script` with prepared statements on the tables as they are.
///
/// # Errors
/// pgbench is not here, or a transaction failed.
pub(crate) async fn run_on_tables(bench: &Bench, script: &str, clients: u32) -> Result<Outcome> {
    let program = tools::pgbench(&bench.binaries.folder)?;
    let path = bench.folder.join("transaction.pgbench");
    std::fs::write(&path, script).context("writing pgbench's script")?;
    let mut command = Command::new(program);
    command.args(["-n", "-M", "prepared", "-j", &clients.min(2).to_string()]).arg("-f").arg(&path);
    command.args(["-c", &clients.to_string(), "-T", &bench.config.seconds.to_string()]);
    command
        .env_clear()
        .envs(launcher::clean_environment())
        .envs(bench.libpq_environment()?)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command.output().await.context("running pgbench")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "pgbench failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    parse(&text).with_context(|| format!("pgbench printed no result: {}", text.trim()))
}

fn parse(output: &str) -> Option<Outcome> {
    let value = |prefix: &str| {
        let rest = output.lines().find_map(|line| line.strip_prefix(prefix))?;
        rest.trim().split(' ').next()?.parse().ok()
    };
    Some(Outcome { rate: value("tps =")?, latency_ms: value("latency average =")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_latency_are_read() {
        let output = "pgbench (15.18)\nnumber of clients: 64\nlatency average = 6.042 ms\ninitial connection time = 80 ms\n\
                      tps = 10592.123456 (without initial connection time)\n";
        assert_eq!(parse(output), Some(Outcome { rate: 10592.123456, latency_ms: 6.042 }));
        assert_eq!(parse("pgbench: error"), None);
    }
}
