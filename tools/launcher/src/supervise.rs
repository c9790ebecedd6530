//! Runs the processes of a Procfile: prefixes every line of output, and restarts each process that dies.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::shutdown::{CancellationToken, sleep_or_stop};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::procfile::Entry;
use crate::screen::Console;

/// The time in which a process must finish its work in hand.
const STOP_WAIT: Duration = Duration::from_secs(15);

/// The first and the longest pause before a process that died is started again.
const RESTART_WAIT: Duration = Duration::from_millis(500);
const RESTART_WAIT_MAX: Duration = Duration::from_secs(10);

/// After this lifetime the next death of a process counts as its first.
const SOUND_AFTER: Duration = Duration::from_secs(30);

/// Keeps one process running until `stop`. The process id of each start is sent to `started`.
pub(crate) async fn keep_running(
    index: usize,
    entry: Entry,
    environment: Vec<(String, String)>,
    console: Console,
    started: mpsc::UnboundedSender<u32>,
    stop: CancellationToken,
) {
    let mut wait = RESTART_WAIT;
    while !stop.is_cancelled() {
        let started_at = Instant::now();
        match start(&entry, &environment) {
            Ok(mut child) => {
                if let Some(pid) = child.id() {
                    // The receiver is gone only when everything is being stopped.
                    let _ = started.send(pid);
                }
                let status = watch(index, &entry, &mut child, &console, &stop).await;
                if stop.is_cancelled() {
                    return;
                }
                console.print(index, &entry.name, &format!("ended ({status}); starting it again"));
            }
            Err(error) => console.print(index, &entry.name, &format!("{error:#}; trying again")),
        }
        if started_at.elapsed() > SOUND_AFTER {
            wait = RESTART_WAIT;
        }
        sleep_or_stop(wait, &stop).await;
        wait = (wait * 2).min(RESTART_WAIT_MAX);
    }
}

fn start(entry: &Entry, environment: &[(String, String)]) -> Result<Child> {
    Command::new("sh")
        .arg("-c")
        // `exec` replaces the shell by the process, so that signals reach the process itself.
        .arg(format!("exec {}", entry.command))
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A process group of its own: Ctrl-C reaches the launcher alone, which then stops the processes in order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", entry.command))
}

/// Prints the output of the process until it ends; on `stop`, asks it to end. Returns its exit status.
async fn watch(index: usize, entry: &Entry, child: &mut Child, console: &Console, stop: &CancellationToken) -> String {
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
    for lines in [output, errors].into_iter().flatten() {
        // A grandchild may hold the pipe open; its output is not waited for.
        let _ = tokio::time::timeout(Duration::from_secs(1), lines).await;
    }
    ended.map_or_else(|error| error.to_string(), |status| status.to_string())
}

async fn pass_on(pipe: impl AsyncRead + Unpin, index: usize, name: String, console: Console) {
    let mut lines = BufReader::new(pipe).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        console.print(index, &name, &String::from_utf8_lossy(&line));
    }
}
