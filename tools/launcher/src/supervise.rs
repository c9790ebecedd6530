//! Runs the processes of a Procfile and the private servers: prefixes every line of output, and restarts each process that dies.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::shutdown::{CancellationToken, sleep_or_stop};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Child;
use tokio::sync::mpsc;

use crate::bound::bound;
use crate::procfile::Entry;
use crate::screen::Console;
use crate::servers::Server;

/// The exit status of a process that a restart does not help: a setting is wrong, or a person has to act first.
const STAY_DOWN: i32 = 2;

/// The time in which a process must finish its work in hand.
const STOP_WAIT: Duration = Duration::from_secs(15);

/// The first and the longest pause before a process that died is started again.
const RESTART_WAIT: Duration = Duration::from_millis(500);
const RESTART_WAIT_MAX: Duration = Duration::from_secs(10);

/// After this lifetime the next death of a process counts as its first.
const SOUND_AFTER: Duration = Duration::from_secs(30);

/// The pauses between the deaths of a process and its next starts.
struct Pauses {
    next: Duration,
    started_at: Instant,
}

impl Pauses {
    fn new() -> Self {
        Self { next: RESTART_WAIT, started_at: Instant::now() }
    }

    /// Notes a start.
    fn begin(&mut self) {
        self.started_at = Instant::now();
    }

    /// Waits after a death.
    async fn wait(&mut self, stop: &CancellationToken) {
        if self.started_at.elapsed() > SOUND_AFTER {
            self.next = RESTART_WAIT;
        }
        sleep_or_stop(self.next, stop).await;
        self.next = (self.next * 2).min(RESTART_WAIT_MAX);
    }
}

/// A process that was started, and the signal that stops it.
pub(crate) type Started = (Option<u32>, Signal);

/// Keeps a private server running until `stop`, and then stops it. Each start is sent to `started`.
pub(crate) async fn keep_serving(
    index: usize,
    mut server: Server,
    console: Console,
    started: mpsc::UnboundedSender<Started>,
    stop: CancellationToken,
) {
    let name = server.name();
    let mut pauses = Pauses::new();
    'serving: loop {
        let status = tokio::select! {
            status = server.ended() => status,
            () = stop.cancelled() => break,
        };
        console.print(index, &name, &format!("ended ({status}); starting it again"));
        loop {
            pauses.wait(&stop).await;
            if stop.is_cancelled() {
                break 'serving;
            }
            pauses.begin();
            match server.start_again().await {
                Ok(again) => {
                    server = again;
                    console.print(index, &name, "runs again");
                    // The receiver is gone only when everything is being stopped.
                    let _ = started.send((server.pid(), server.stop_signal()));
                    break;
                }
                Err(error) => console.print(index, &name, &format!("{error:#}; trying again")),
            }
        }
    }
    if let Err(error) = server.stop().await {
        console.print(index, &name, &format!("{error:#}"));
    }
}

/// Keeps one process running until `stop`. Each start is sent to `started`.
pub(crate) async fn keep_running(
    index: usize,
    entry: Entry,
    environment: HashMap<OsString, OsString>,
    console: Console,
    started: mpsc::UnboundedSender<Started>,
    stop: CancellationToken,
) {
    let mut pauses = Pauses::new();
    while !stop.is_cancelled() {
        pauses.begin();
        match start(&entry, &environment) {
            Ok(mut child) => {
                // The receiver is gone only when everything is being stopped.
                let _ = started.send((child.id(), Signal::SIGTERM));
                let status = watch(index, &entry, &mut child, &console, &stop).await;
                if stop.is_cancelled() {
                    return;
                }
                if status.as_ref().is_ok_and(|status| status.code() == Some(STAY_DOWN)) {
                    console.print(index, &entry.name, "ended (exit status: 2); not started again before bin/up is");
                    return;
                }
                let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                console.print(index, &entry.name, &format!("ended ({status}); starting it again"));
            }
            Err(error) => console.print(index, &entry.name, &format!("{error:#}; trying again")),
        }
        pauses.wait(&stop).await;
    }
}

fn start(entry: &Entry, environment: &HashMap<OsString, OsString>) -> Result<Child> {
    // A launcher that was killed can wait for nothing to be finished, so its processes are killed too: all of them survive that.
    bound("sh", Signal::SIGKILL)
        .arg("-c")
        // `exec` replaces the shell by the process, so that signals reach the process itself.
        .arg(format!("exec {}", entry.command))
        .env_clear()
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", entry.command))
}

/// Prints the output of the process until it ends; on `stop`, asks it to end. Returns its exit status.
async fn watch(
    index: usize,
    entry: &Entry,
    child: &mut Child,
    console: &Console,
    stop: &CancellationToken,
) -> io::Result<ExitStatus> {
    let output =
        child.stdout.take().map(|pipe| tokio::spawn(pass_on(pipe, index, entry.name.clone(), console.clone())));
    let errors =
        child.stderr.take().map(|pipe| tokio::spawn(pass_on(pipe, index, entry.name.clone(), console.clone())));
    let group = child.id().map(|pid| Pid::from_raw(pid as i32));
    let ended = tokio::select! {
        ended = child.wait() => ended,
        () = stop.cancelled() => {
            let _ = group.map(|group| killpg(group, Signal::SIGTERM));
            match tokio::time::timeout(STOP_WAIT, child.wait()).await {
                Ok(ended) => ended,
                Err(_) => {
                    console.print(index, &entry.name, "does not stop; killing it");
                    let _ = group.map(|group| killpg(group, Signal::SIGKILL));
                    child.wait().await
                }
            }
        }
    };
    // Whatever the process has started and left in its group.
    let _ = group.map(|group| killpg(group, Signal::SIGKILL));
    for lines in [output, errors].into_iter().flatten() {
        // A grandchild may hold the pipe open; its output is not waited for.
        let _ = tokio::time::timeout(Duration::from_secs(1), lines).await;
    }
    ended
}

async fn pass_on(pipe: impl AsyncRead + Unpin, index: usize, name: String, console: Console) {
    let mut lines = BufReader::new(pipe).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        console.print(index, &name, &String::from_utf8_lossy(&line));
    }
}
