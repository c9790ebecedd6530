//! Servers that belong to one test, which may wipe, kill and restart them.

use std::path::{Path, PathBuf};

use deadpool_postgres::ClientWrapper as Client;
use launcher::{PostgresServer, RedisServer, claim_ports, find_postgres, find_redis};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A new folder below the system's folder for temporary files.
pub fn scratch_folder() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("rrl-{:016x}", rand::random::<u64>()));
    std::fs::create_dir(&folder).unwrap();
    folder
}

/// A free port, which no other test and no launcher chooses before this test ends.
pub fn free_port() -> u16 {
    let claimed = claim_ports(rand::random_range(10_000..30_000), 1).unwrap().remove(0);
    let port = claimed.port;
    std::mem::forget(claimed);
    port
}

/// A Redis that only one test uses.
pub struct PrivateRedis {
    folder: PathBuf,
    settings: Vec<String>,
    server: Option<RedisServer>,
}

impl PrivateRedis {
    /// Starts a server; `settings` are given as `--name value`.
    pub async fn start(settings: &[&str]) -> Self {
        Self::start_in(scratch_folder(), settings).await
    }

    /// Starts a server on a prepared folder. The folder is removed with the server.
    pub async fn start_in(folder: PathBuf, settings: &[&str]) -> Self {
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut redis = Self { folder, settings, server: None };
        redis.start_again().await;
        redis
    }

    /// Its URL, the same after every restart.
    pub fn url(&self) -> String {
        self.server.as_ref().unwrap().url()
    }

    /// SIGKILL, and it stays away.
    pub async fn kill(&mut self) {
        kill_server(self.server.take().unwrap().pid()).await;
    }

    /// Starts it again on the same folder.
    pub async fn start_again(&mut self) {
        let settings: Vec<&str> = self.settings.iter().map(String::as_str).collect();
        self.server = Some(RedisServer::start(&find_redis().unwrap(), &self.folder, &settings).await.unwrap());
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        end(self.server.as_ref().and_then(RedisServer::pid), &self.folder);
    }
}

/// A PostgreSQL that only one test uses.
pub struct PrivatePostgres {
    folder: PathBuf,
    settings: Vec<String>,
    server: Option<PostgresServer>,
}

impl PrivatePostgres {
    /// Starts a server without fsync. Tests kill servers, not machines: committed data survives that.
    pub async fn start() -> Self {
        Self::start_with(&["fsync=off"]).await
    }

    /// Starts a server with these settings, given as `name=value`, and with default settings otherwise.
    pub async fn start_with(settings: &[&str]) -> Self {
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut postgres = Self { folder: scratch_folder(), settings, server: None };
        postgres.start_again().await;
        postgres
    }

    /// The URL of its maintenance database, the same after every restart.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The URL of one of its databases.
    pub fn url_of(&self, database: &str) -> String {
        self.server.as_ref().unwrap().url(database)
    }

    /// A connection to one of its databases, as its superuser.
    pub async fn connect(&self, database: &str) -> Client {
        connect::postgres::connect(&self.url_of(database).parse().unwrap(), "test", || {}).await.unwrap()
    }

    /// Runs a statement in one of its databases, whether or not the server is writable. Returns the first column of each row
    /// as text.
    pub async fn run(&self, database: &str, statement: &str) -> Vec<String> {
        let config: tokio_postgres::Config = self.server.as_ref().unwrap().url(database).parse().unwrap();
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let messages = client.simple_query(statement).await.unwrap();
        let rows = messages.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        });
        rows.collect()
    }

    /// Starts a hot standby, which follows this server.
    pub async fn start_standby(&self) -> Self {
        let mut standby = Self { folder: scratch_folder(), settings: self.settings.clone(), server: None };
        let mut command = tokio::process::Command::new(find_postgres().unwrap().folder.join("pg_basebackup"));
        command.arg("-d").arg(self.url()).arg("-D").arg(standby.folder.join("data"));
        command.args(["-R", "-X", "stream", "-c", "fast", "--no-sync"]);
        crate::Process::spawn("pg_basebackup", command).succeed().await;
        standby.start_again().await;
        standby
    }

    /// Waits until this standby has everything that `primary` has.
    pub async fn follows(&self, primary: &Self) {
        let end = primary.run("postgres", "SELECT pg_current_wal_insert_lsn()").await.remove(0);
        let received = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
        crate::wait_until("the standby has everything", async || self.run("postgres", &received).await == ["t"]).await;
    }

    /// Cuts a standby off: it receives nothing any more.
    pub async fn stop_following(&self) {
        self.run("postgres", "ALTER SYSTEM SET primary_conninfo = ''").await;
        self.run("postgres", "SELECT pg_reload_conf()").await;
        let receivers = "SELECT count(*) FROM pg_stat_wal_receiver";
        crate::wait_until("nothing is received", async || self.run("postgres", receivers).await == ["0"]).await;
    }

    /// A URL of this database that names both servers, this one first. The user is the superuser.
    pub fn url_with(&self, other: &Self, database: &str) -> String {
        let host = |server: &Self| server.url().split(['@', '/']).nth(3).unwrap().to_owned();
        format!("postgres://app@{},{}/{database}", host(self), host(other))
    }

    /// Stops the server and the sessions of a program: connections stay open, new ones are taken, and nothing is answered.
    pub async fn hang(&self, program: &str) {
        let sessions = format!("SELECT pid FROM pg_stat_activity WHERE application_name LIKE '{program}%'");
        let mut pids = self.run("postgres", &sessions).await;
        assert!(!pids.is_empty(), "{program} is connected");
        pids.push(self.server.as_ref().and_then(PostgresServer::pid).unwrap().to_string());
        for pid in pids {
            kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGSTOP).unwrap();
        }
    }

    /// Makes a standby writable.
    pub async fn promote(&self) {
        assert_eq!(self.run("postgres", "SELECT pg_promote()").await, ["t"], "the standby is promoted");
    }

    /// Restarts it as a hot standby that follows no server.
    pub async fn restart_as_standby(&mut self) {
        let data = self.run("postgres", "SHOW data_directory").await.remove(0);
        self.server.take().unwrap().stop().await.unwrap();
        std::fs::write(Path::new(&data).join("standby.signal"), "").unwrap();
        self.start_again().await;
    }

    /// SIGKILL, and it stays away.
    pub async fn kill(&mut self) {
        kill_server(self.server.take().unwrap().pid()).await;
    }

    /// Shuts the server down and copies its data: a backup for [`put_back`](Self::put_back). The server stays away.
    pub async fn stop_and_copy(&mut self) -> Backup {
        let client = connect::postgres::connect(&self.url().parse().unwrap(), "test", || {}).await.unwrap();
        let data: String = client.query_one("SHOW data_directory", &[]).await.unwrap().get(0);
        drop(client);
        self.server.take().unwrap().stop().await.unwrap();
        let backup = Backup { data: data.into(), copy: scratch_folder().join("data") };
        copy_folder(&backup.data, &backup.copy).await;
        backup
    }

    /// Shuts the server down and replaces its data by the backup. The server stays away.
    pub async fn put_back(&mut self, backup: &Backup) {
        self.server.take().unwrap().stop().await.unwrap();
        std::fs::remove_dir_all(&backup.data).unwrap();
        copy_folder(&backup.copy, &backup.data).await;
    }

    /// Starts it again on the same data.
    pub async fn start_again(&mut self) {
        let settings: Vec<&str> = self.settings.iter().map(String::as_str).collect();
        let server = PostgresServer::start(&find_postgres().unwrap(), &self.folder, &settings).await.unwrap();
        self.server = Some(server);
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        end(self.server.as_ref().and_then(PostgresServer::pid), &self.folder);
    }
}

/// A copy of a Postgres's data.
pub struct Backup {
    data: PathBuf,
    copy: PathBuf,
}

impl Drop for Backup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.copy.parent().unwrap());
    }
}

async fn copy_folder(from: &Path, to: &Path) {
    let mut command = tokio::process::Command::new("cp");
    command.arg("-a").arg(from).arg(to);
    crate::Process::spawn("cp", command).succeed().await;
}

/// SIGKILL for a server and its children.
pub(crate) async fn kill_server(pid: Option<u32>) {
    let pid = pid.unwrap();
    assert!(is_alive(Pid::from_raw(pid as i32)), "there is a server to kill");
    let killed = kill_with_children(pid);
    crate::wait_until("the server is gone", async || !killed.iter().any(|pid| is_alive(*pid))).await;
}

/// Kills a server and its children. The sessions of a killed Postgres end by themselves, but they may still answer a
/// statement, and a session that a test has stopped with SIGSTOP never ends.
fn kill_with_children(pid: u32) -> Vec<Pid> {
    // The file cannot be read if the server has ended.
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()));
    // The server comes first, because it would start new children.
    let all: Vec<Pid> = std::iter::once(Pid::from_raw(pid as i32)).chain(children).collect();
    for pid in &all {
        // An error means that the process has ended.
        let _ = kill(*pid, Signal::SIGKILL);
    }
    all
}

/// Whether a process runs. A zombie does not run.
pub fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, after)| !after.starts_with('Z'))
}

/// Kills a server that runs, and removes its folder.
pub(crate) fn end(pid: Option<u32>, folder: &Path) {
    if let Some(pid) = pid {
        kill_with_children(pid);
    }
    let _ = std::fs::remove_dir_all(folder);
}
