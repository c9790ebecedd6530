//! Finds the binaries of the servers. Debian does not put PostgreSQL's on the PATH.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest PostgreSQL that will do, and the oldest Redis (Valkey reports the Redis it is compatible with).
const POSTGRES_MAJOR_MIN: u32 = 14;
const REDIS_MAJOR_MIN: u32 = 7;

/// A PostgreSQL installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresBinaries {
    /// The folder with `initdb` and `postgres`.
    pub folder: PathBuf,
    /// Its major version.
    pub major: u32,
}

/// The newest PostgreSQL on this machine that is new enough, or the reason why none was found. `PG_BIN` names a folder to use instead.
pub fn find_postgres() -> Result<PostgresBinaries, String> {
    let mut seen = Vec::new();
    let mut found: Vec<PostgresBinaries> = postgres_folders()
        .into_iter()
        .filter(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
        .filter_map(|folder| {
            let major = major_version(&folder.join("postgres"))?;
            seen.push(format!("{major} in {}", folder.display()));
            Some(PostgresBinaries { folder, major })
        })
        .filter(|binaries| binaries.major >= POSTGRES_MAJOR_MIN)
        .collect();
    found.sort_by_key(|binaries| binaries.major);
    found.pop().ok_or_else(|| match seen.as_slice() {
        [] => format!("PostgreSQL {POSTGRES_MAJOR_MIN} or newer is needed, and none was found"),
        seen => format!("PostgreSQL {POSTGRES_MAJOR_MIN} or newer is needed; found only {}", seen.join(", ")),
    })
}

/// A Redis or Valkey server that is new enough, or the reason why none was found. `REDIS_BIN` names a binary to use instead.
pub fn find_redis() -> Result<PathBuf, String> {
    let mut seen = Vec::new();
    for binary in redis_binaries().into_iter().filter(|binary| binary.is_file()) {
        let is_valkey = binary.file_name().is_some_and(|name| name == "valkey-server");
        match major_version(&binary) {
            Some(major) if is_valkey || major >= REDIS_MAJOR_MIN => return Ok(binary),
            Some(major) => seen.push(format!("{major} at {}", binary.display())),
            None => {}
        }
    }
    Err(match seen.as_slice() {
        [] => format!("Redis {REDIS_MAJOR_MIN}.0 or newer (or Valkey) is needed, and none was found"),
        seen => format!("Redis {REDIS_MAJOR_MIN}.0 or newer (or Valkey) is needed; found only {}", seen.join(", ")),
    })
}

/// libfaketime, with which chaos steps the clock of Redis. Nothing else needs it.
pub fn find_clock_library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.filter_map(Result::ok).map(|entry| entry.path().join("faketime"));
    folders.map(|folder| folder.join("libfaketime.so.1")).find(|library| library.is_file())
}

fn postgres_folders() -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os("PG_BIN") {
        return vec![folder.into()];
    }
    let mut folders = path_folders();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        folders.push(String::from_utf8_lossy(&output.stdout).trim().into());
    }
    for (parent, prefix, rest) in [
        ("/usr/lib/postgresql", "", "bin"),
        ("/usr", "pgsql-", "bin"),
        ("/opt/homebrew/opt", "postgresql@", "bin"),
        ("/usr/local/opt", "postgresql@", "bin"),
        ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
    ] {
        let Ok(entries) = std::fs::read_dir(parent) else { continue };
        let names = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        folders.extend(names.map(|entry| entry.path().join(rest)));
    }
    // initdb on the PATH may be a link into the folder that holds the other binaries.
    let real = |folder: &PathBuf| folder.join("initdb").canonicalize().ok()?.parent().map(Path::to_path_buf);
    folders.iter().filter_map(real).collect()
}

fn redis_binaries() -> Vec<PathBuf> {
    if let Some(binary) = std::env::var_os("REDIS_BIN") {
        return vec![binary.into()];
    }
    let mut folders = path_folders();
    folders.extend(["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"].map(PathBuf::from));
    folders.iter().flat_map(|folder| ["redis-server", "valkey-server"].map(|name| folder.join(name))).collect()
}

fn path_folders() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// The first number in what `binary --version` prints: `postgres (PostgreSQL) 15.18`, `Redis server v=7.0.15 …`.
fn major_version(binary: &Path) -> Option<u32> {
    let output = Command::new(binary).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let start = text.find(|c: char| c.is_ascii_digit())?;
    text[start..].split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Debian keeps servers in folders that are not on the PATH of ordinary users.
pub(crate) fn is_on_path(program: &str) -> bool {
    path_folders().into_iter().chain(["/usr/sbin".into()]).any(|folder| folder.join(program).is_file())
}

/// The value of an environment variable. An empty value counts as not set.
pub(crate) fn given(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
