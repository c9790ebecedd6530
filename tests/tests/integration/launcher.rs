//! `bin/up` on private servers: from an empty folder to convergence, and again after everything was killed.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::{Process, binary, free_port, is_alive, scratch_folder, wait_until};
use tokio::process::Command;

/// A folder for a launcher, with a Procfile that lists six processes.
pub struct UpFolder {
    path: PathBuf,
    data: PathBuf,
    port: u16,
}

impl UpFolder {
    /// A folder whose simulator sends 50 rides per second.
    pub async fn new() -> Self {
        Self::with_rate(50).await
    }

    /// A folder whose simulator sends `rate` rides per second.
    pub async fn with_rate(rate: u32) -> Self {
        let port = free_port();
        // The name has characters that need quoting.
        let path = scratch_folder().join("my rides, 100%");
        let folder = Self { data: path.join("data"), path, port };
        std::fs::create_dir(&folder.path).unwrap();
        let bin = |name| binary(name).display().to_string();
        let faults = "--fault-rate 0.2";
        let procfile = format!(
            "api: {}\nstreamer: {} {faults}\nconsumer0: {} consumer0 {faults}\nconsumer1: {} consumer1 {faults}\n\
             reaper: {}\nsimulator: {} --rate {rate}\n",
            bin("api"),
            bin("streamer"),
            bin("consumer"),
            bin("consumer"),
            bin("reaper"),
            bin("simulator"),
        );
        std::fs::write(folder.path.join("Procfile"), procfile).unwrap();
        folder
    }

    /// The folder of the servers.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Starts the launcher.
    pub fn up(&self, environment: &[(&str, &str)]) -> Process {
        Process::spawn("launcher", self.up_command(environment))
    }

    /// The command that starts the launcher.
    pub fn up_command(&self, environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(binary("launcher"));
        command
            .args(["up", "--summary-every", "1", "--procfile"])
            .arg(self.path.join("Procfile"))
            .arg("--data")
            .arg(&self.data)
            .env_remove("DATABASE_URL")
            .env_remove("REDIS_URL")
            .env("API_PORT", self.port.to_string())
            .envs(environment.iter().copied());
        command
    }

    async fn totals(&self) -> Option<serde_json::Value> {
        let response = reqwest::get(format!("http://127.0.0.1:{}/totals", self.port)).await.ok()?;
        response.json().await.ok()
    }

    /// The number of rides in SQL; 0 if the api does not answer.
    pub async fn ride_count(&self) -> i64 {
        self.totals().await.and_then(|totals| totals["sql"]["ride_count"].as_i64()).unwrap_or(0)
    }

    /// The process ids that the launcher has registered.
    pub fn pids(&self) -> Vec<Pid> {
        let text = std::fs::read_to_string(self.data.join("processes")).unwrap_or_default();
        text.lines().map(|line| Pid::from_raw(line.split(' ').next().unwrap().parse().unwrap())).collect()
    }

    /// The process ids, once `count` are registered: the first consumer converges while the processes after it are still started.
    pub async fn pids_of(&self, count: usize) -> Vec<Pid> {
        wait_until(&format!("{count} processes are registered"), async || self.pids().len() == count).await;
        self.pids()
    }
}

impl Drop for UpFolder {
    fn drop(&mut self) {
        // A failed test may have left processes running.
        for pid in self.pids() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let _ = std::fs::remove_dir_all(self.path.parent().unwrap());
    }
}

#[tokio::test]
async fn up_runs_everything_shows_convergence_and_stops_cleanly() {
    let folder = UpFolder::new().await;
    let mut up = folder.up(&[]);
    up.wait_for("curl -d distance=123.0").await;
    up.wait_for("CONVERGED").await;
    // Two servers and six processes.
    let victim = *folder.pids_of(8).await.last().unwrap();

    let second = folder.up(&[("API_PORT", "0")]).fail(1).await;
    assert!(second.contains("another bin/up is running"), "{second}");

    // The launcher restarts a process that dies.
    kill(victim, Signal::SIGKILL).unwrap();
    up.wait_for("starting it again").await;
    wait_until("it is registered no longer", async || !folder.pids().contains(&victim)).await;
    let pids = folder.pids_of(8).await;
    up.signal(Signal::SIGINT);
    assert!(up.ended().await.success(), "{}", up.output());
    assert!(up.read_to_end().await.contains("everything has stopped"));
    assert!(pids.into_iter().all(|pid| !is_alive(pid)), "a process still runs");
}

#[tokio::test]
async fn up_recovers_after_everything_was_killed() {
    let folder = UpFolder::new().await;
    let mut up = folder.up(&[]);
    up.wait_for("CONVERGED").await;
    wait_until("rides were taken", async || folder.ride_count().await > 30).await;
    up.kill().await;
    let ride_count = folder.ride_count().await;
    for pid in folder.pids() {
        let _ = kill(pid, Signal::SIGKILL);
    }
    let mut up = folder.up(&[]);
    up.wait_for("CONVERGED").await;
    assert!(folder.ride_count().await >= ride_count, "rides were lost");

    // A server that hangs outlives a launcher that was killed. The next launcher stops it.
    let orphans = folder.pids_of(8).await;
    kill(orphans[0], Signal::SIGSTOP).unwrap();
    up.kill().await;
    assert!(is_alive(orphans[0]));
    let mut up = folder.up(&[]);
    up.wait_for("left behind by an earlier run").await;
    up.wait_for("CONVERGED").await;
    assert!(orphans.into_iter().all(|pid| !is_alive(pid)), "a process of the earlier run still runs");
    up.signal(Signal::SIGTERM);
    assert!(up.ended().await.success(), "{}", up.output());
}

#[tokio::test]
async fn a_command_runs_beside_servers_of_its_own_which_are_gone_after_it() {
    let folder = UpFolder::new().await;
    let with_servers = |script: &str| {
        let mut command = Command::new(binary("launcher"));
        command.args(["with-servers", "--data"]).arg(folder.path.join("test")).args(["--", "sh", "-c", script]);
        Process::spawn("launcher", command)
    };
    // The command writes to a file, because the launcher's own output is collected here.
    let started = folder.path.join("started");
    let mut first = with_servers(&format!("echo $DATABASE_URL $REDIS_URL > '{}'; exec sleep 600", started.display()));
    let urls = || std::fs::read_to_string(&started).unwrap_or_default();
    wait_until("the command runs", async || urls().contains("postgres://") && urls().contains("redis+unix://")).await;
    let second = with_servers("true").fail(1).await;
    assert!(second.contains("another run uses"), "{second}");
    first.signal(Signal::SIGTERM);
    assert!(!first.ended().await.success());
    with_servers("exit 7").fail(7).await;
    assert!(!folder.path.join("test").exists());
}

#[tokio::test]
async fn up_says_what_is_wrong_before_it_starts_anything() {
    let folder = UpFolder::new().await;
    let taken = tokio::net::TcpListener::bind(("127.0.0.1", folder.port)).await.unwrap();
    let output = folder.up(&[]).fail(1).await;
    assert!(
        output.contains(&format!("port {} cannot be used", folder.port)) && output.contains("API_PORT"),
        "{output}"
    );
    drop(taken);
    let output = folder.up(&[("PG_BIN", "/nowhere")]).fail(1).await;
    assert!(output.contains("PostgreSQL 14 or newer is needed"), "{output}");
    let output = folder.up(&[("REDIS_BIN", "/nowhere")]).fail(1).await;
    assert!(output.contains("Redis 7.0 or newer"), "{output}");
    let mut command = folder.up_command(&[("DATABASE_URL", "nonsense")]);
    command.args(["--use", "DATABASE_URL"]);
    let output = Process::spawn("launcher", command).fail(1).await;
    assert!(output.contains("bad DATABASE_URL: give a URL such as postgres://"), "{output}");
}
