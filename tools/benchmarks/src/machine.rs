//! The machine, the versions and the settings of a measurement, without which a figure means nothing.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use tokio::process::Command;

use crate::bench::Bench;
use crate::tools;

/// Settings of Postgres that decide the cost of a commit and the available memory.
const POSTGRES_SETTINGS: [&str; 9] = [
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_sync_method",
    "shared_buffers",
    "max_wal_size",
    "max_connections",
    "autovacuum",
    "jit",
];

/// Machine, versions and settings, each with its name.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub(crate) struct Surroundings(Vec<(&'static str, String)>);

impl Surroundings {
    /// Reads everything.
    pub async fn look(bench: &Bench) -> Result<Self> {
        let config = &bench.config;
        let postgres = bench.binaries.folder.join("postgres");
        let mut settings = Vec::new();
        for name in POSTGRES_SETTINGS {
            let row = bench.client.query_one("SELECT current_setting($1)", &[&name]).await?;
            settings.push(format!("{name} {}", row.get::<_, String>(0)));
        }
        Ok(Self(vec![
            ("machine", machine()),
            ("system", format!("{}, Linux {}", distribution(), read_line("/proc/sys/kernel/osrelease"))),
            ("load before (1, 5, 15 min)", read_line("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")),
            ("PostgreSQL", first_line(&postgres, "--version").await),
            ("Redis", first_line(&bench.redis_binary, "--version").await),
            ("rustc", first_line(Path::new("rustc"), "--version").await),
            ("wrk", version_of(tools::wrk(), "-v").await),
            ("nginx", version_of(tools::nginx(), "-v").await),
            ("redis-benchmark", version_of(tools::redis_benchmark(), "--version").await),
            ("PostgreSQL's settings (no setting of ours)", settings.join(", ")),
            ("Redis's settings", "appendonly yes, appendfsync everysec, no snapshots, noeviction; that of the wallets' read model: appendonly no".to_owned()),
            (
                "this program's settings",
                format!(
                    "runs {}, seconds {}, records {}, deep records {}, quick {}",
                    config.runs, config.seconds, config.records, config.deep_records, config.quick
                ),
            ),
        ]))
    }

    /// Name and value.
    pub fn lines(&self) -> &[(&'static str, String)] {
        &self.0
    }
}

/// The short commit, with `+changes` if files differ from it.
pub(crate) async fn commit() -> String {
    let commit = output("git", &["rev-parse", "--short", "HEAD"]).await;
    if commit.is_empty() {
        return "unknown".to_owned();
    }
    // Results of earlier runs do not count as changes.
    let changes = output("git", &["status", "--porcelain", "--", ":/", ":(top,exclude)tools/benchmarks/results"]).await;
    if changes.is_empty() { commit } else { format!("{commit}+changes") }
}

fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = value_of(&cpus, "model name").unwrap_or("unknown processor").to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = value_of(&memory, "MemTotal").and_then(|value| value.strip_suffix(" kB")?.parse::<f64>().ok());
    format!("{model}, {cores} cores, {:.0} GB", kilobytes.unwrap_or(0.0) / 1e6)
}

fn distribution() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let line = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown");
    line.trim_matches('"').to_owned()
}

/// The value of the first line `name : value`.
fn value_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

fn read_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

async fn version_of(program: Result<std::path::PathBuf, tools::Missing>, flag: &str) -> String {
    match program {
        Ok(program) => first_line(&program, flag).await,
        Err(_) => "not here".to_owned(),
    }
}

/// The first line that a program prints, to either output and with any exit status.
async fn first_line(program: &Path, flag: &str) -> String {
    let Ok(output) = Command::new(program).arg(flag).output().await else { return "unknown".to_owned() };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned()
}

async fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().await;
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::value_of;

    #[test]
    fn a_value_is_found_by_its_name() {
        let text = "processor\t: 0\nmodel name\t: Some CPU: fast\nmodel name\t: another\n";
        assert_eq!(value_of(text, "model name"), Some("Some CPU: fast"));
        assert_eq!(value_of(text, "flags"), None);
    }
}
