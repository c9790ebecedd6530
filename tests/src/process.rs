//! Real processes: the binaries of the workspace, with real signals.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};

use crate::{PATIENCE, World, wait_until};

/// The path of a binary of this workspace. Cargo builds it beside the tests, whatever the profile is:
/// `target/<profile>/<name>` beside `target/<profile>/deps/<test>`.
///
/// # Panics
/// The binary was not built.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(|deps| deps.parent()).unwrap().join(name);
    assert!(path.is_file(), "{} is not built: run the tests with bin/test, which builds it", path.display());
    path
}

/// A process that is killed when the test ends.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Mutex<String>>,
}

impl Process {
    /// Starts a binary in a world, with further arguments. It connects to Postgres under its own role.
    pub fn start(world: &World, name: &str, args: &[&str]) -> Self {
        let mut command = Command::new(binary(name));
        command
            .args(args)
            .env_remove("FAULT_RATE")
            .env_remove("FAULT_SEED")
            .env("DATABASE_URL", world.database_url_of(name))
            .env("REDIS_URL", world.redis_url())
            .env("STREAM_NAME", world.stream_name());
        Self::spawn(name, command)
    }

    /// Starts any command.
    pub fn spawn(name: &str, mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let output = Arc::default();
        tokio::spawn(collect(child.stdout.take().unwrap(), Arc::clone(&output)));
        tokio::spawn(collect(child.stderr.take().unwrap(), Arc::clone(&output)));
        Self { name: name.to_owned(), child, output }
    }

    /// The text that the process has printed so far, to standard output and standard error.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Waits until the process has printed `words`.
    pub async fn wait_for(&mut self, words: &str) {
        self.wait_for_times(1, words).await;
    }

    /// Waits until the streamer knows where the stream ends, for the `times`-th time in its life. A record that is cut before
    /// may reach every consumer out of Postgres, and what all have passed is not published.
    pub async fn wait_until_publishing(&mut self, times: usize) {
        self.wait_for_times(times, "publishing goes on").await;
    }

    async fn wait_for_times(&mut self, times: usize, words: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.output().matches(words).count() < times {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{} ended ({ended:?}) before it printed {words:?}:\n{}", self.name, self.output());
            let late = tokio::time::Instant::now() > deadline;
            assert!(!late, "{} did not print {words:?}:\n{}", self.name, self.output());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Waits until the process has logged `words`, and returns the address in that line: `127.0.0.1:5010`.
    pub async fn address_after(&mut self, words: &str) -> String {
        self.wait_for(words).await;
        let output = self.output();
        let line = output.lines().find(|line| line.contains(words)).unwrap();
        line.split("address=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().expect("it runs") as i32)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits until the process ends.
    pub async fn ended(&mut self) -> ExitStatus {
        self.ended_within(PATIENCE).await
    }

    async fn ended_within(&mut self, patience: Duration) -> ExitStatus {
        let ended = tokio::time::timeout(patience, self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("{} does not end:\n{}", self.name, self.output())).unwrap()
    }

    /// Sends SIGTERM. The process must finish its work in hand and exit with 0.
    pub async fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended().await;
        assert!(status.success(), "{} ended with {status} after SIGTERM:\n{}", self.name, self.output());
    }

    /// Sends SIGKILL and waits until the process ends.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// The whole output of a process that has ended.
    pub async fn read_to_end(&self) -> String {
        // Two tasks read the pipes. They may finish a moment after the process.
        wait_until("its output is read", async || Arc::strong_count(&self.output) == 1).await;
        self.output()
    }

    /// Waits until the process ends with success. Returns its output.
    pub async fn succeed(self) -> String {
        self.succeed_within(PATIENCE).await
    }

    /// Like [`succeed`](Self::succeed), with the limit `patience`.
    pub async fn succeed_within(mut self, patience: Duration) -> String {
        let status = self.ended_within(patience).await;
        let output = self.read_to_end().await;
        assert!(status.success(), "{} ended with {status}:\n{output}", self.name);
        output
    }

    /// Waits until the process ends with this status. Returns its output.
    pub async fn fail(mut self, code: i32) -> String {
        let status = self.ended().await;
        let output = self.read_to_end().await;
        assert_eq!(status.code(), Some(code), "{}:\n{output}", self.name);
        output
    }
}

async fn collect(pipe: impl AsyncRead + Unpin, output: Arc<Mutex<String>>) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut output = output.lock().unwrap();
        output.push_str(&line);
        output.push('\n');
    }
}
