//! Stops processes: children, and processes that an earlier launcher left behind when it was killed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::process::Child;

use crate::screen::tell;

/// The time in which a left-over process must end before it is killed.
const LEFTOVER_WAIT: Duration = Duration::from_secs(10);

/// Sends `signal` and waits. A process that is still there after `wait` is killed.
///
/// # Errors
/// The process had to be killed.
pub(crate) async fn stop_child(child: &mut Child, signal: Signal, wait: Duration) -> Result<()> {
    let Some(pid) = child.id() else { return Ok(()) };
    // An error means that the process has just ended.
    let _ = kill(Pid::from_raw(pid as i32), signal);
    match tokio::time::timeout(wait, child.wait()).await {
        Ok(ended) => {
            ended.context("waiting for a process to end")?;
            Ok(())
        }
        Err(_) => {
            child.kill().await.context("killing a process")?;
            bail!("process {pid} did not end within {} s of {signal} and was killed", wait.as_secs())
        }
    }
}

/// The running processes, kept on disk: if the launcher is killed, the next launcher stops them.
pub struct Register {
    path: PathBuf,
    lines: Vec<String>,
}

impl Register {
    /// Stops the processes that an earlier launcher registered in `path` and did not stop, and starts an empty register.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn open(path: PathBuf) -> Result<Self> {
        if let Ok(text) = std::fs::read_to_string(&path) {
            // Processes first, servers last: the reverse of the order in which they were started.
            for leftover in text.lines().rev().filter_map(Leftover::parse) {
                leftover.stop().await;
            }
        }
        let register = Self { path, lines: Vec::new() };
        register.save()?;
        Ok(register)
    }

    /// Registers a process with its start time, so that a later process with the same id is left alone. If the file cannot be
    /// written, because the disk is full for example, this is told and no reason to stop.
    pub fn add(&mut self, pid: Option<u32>, signal: Signal) {
        if let Some(pid) = pid
            && let Some(started_at) = started_at(pid)
        {
            self.lines.retain(|line| Leftover::parse(line).is_some_and(|leftover| leftover.is_there()));
            self.lines.push(format!("{pid} {started_at} {}", signal as i32));
            if let Err(error) = self.save() {
                tell(&format!("process {pid} is not registered: {error:#}"));
            }
        }
    }

    /// Empties the register: every process has been stopped.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn clear(&mut self) -> Result<()> {
        self.lines.clear();
        self.save()
    }

    fn save(&self) -> Result<()> {
        write_whole(&self.path, &self.lines.join("\n"))
    }
}

fn write_whole(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).with_context(|| format!("writing {}", beside.display()))?;
    std::fs::rename(&beside, path).with_context(|| format!("writing {}", path.display()))
}

/// A line of the register: `<process id> <start time> <signal that stops it>`.
struct Leftover<'a> {
    pid: u32,
    started_at: &'a str,
    signal: Signal,
}

impl<'a> Leftover<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.split(' ');
        let (pid, started_at) = (words.next()?.parse().ok()?, words.next()?);
        let signal = Signal::try_from(words.next()?.parse::<i32>().ok()?).ok()?;
        Some(Self { pid, started_at, signal })
    }

    fn is_there(&self) -> bool {
        started_at(self.pid).is_some_and(|now| now == self.started_at)
    }

    async fn stop(&self) {
        if !self.is_there() {
            return;
        }
        tell(&format!("stopping process {}, left behind by an earlier run", self.pid));
        self.send(self.signal);
        // A stopped process acts on no signal but SIGKILL until it is continued.
        self.send(Signal::SIGCONT);
        if !wait_until_gone(|| !self.is_there()).await {
            self.send(Signal::SIGKILL);
            wait_until_gone(|| !self.is_there()).await;
        }
    }

    /// Sends a signal to the group that the process leads, or to the process if it leads none.
    fn send(&self, signal: Signal) {
        let id = Pid::from_raw(self.pid as i32);
        // An error means that the process has just ended.
        let _ = killpg(id, signal).or_else(|_| kill(id, signal));
    }
}

/// Ends the processes of a server that use `folder` as their working folder, which only that server does. They are left behind if
/// the launcher was killed before it registered the server, and if a killed Postgres did not take its sessions with it. `false`:
/// this system does not tell which processes there are.
pub(crate) async fn end_servers_in(folder: &Path) -> bool {
    if !Path::new("/proc/self").exists() {
        return false;
    }
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let left = servers_in(folder);
        if left.is_empty() {
            break;
        }
        for pid in &left {
            tell(&format!("stopping process {pid}, left behind in {}", folder.display()));
            // An error means that the process has just ended.
            let _ = kill(*pid, signal).and_then(|()| kill(*pid, Signal::SIGCONT));
        }
        wait_until_gone(|| servers_in(folder).is_empty()).await;
    }
    true
}

fn servers_in(folder: &Path) -> Vec<Pid> {
    let is_server = |process: &Path| {
        let program = std::fs::read_link(process.join("exe")).unwrap_or_default();
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_known = ["postgres", "redis-", "valkey-"].iter().any(|start| name.starts_with(start));
        is_known && std::fs::read_link(process.join("cwd")).is_ok_and(|used| used == folder)
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let id = |process: std::fs::DirEntry| process.file_name().to_str()?.parse().ok().map(Pid::from_raw);
    processes.filter(|process| is_server(&process.path())).filter_map(id).collect()
}

/// Waits until processes have ended. `false`: they have not, in the time that they have.
async fn wait_until_gone(are_gone: impl Fn() -> bool) -> bool {
    let deadline = tokio::time::Instant::now() + LEFTOVER_WAIT;
    while !are_gone() {
        if tokio::time::Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    true
}

/// The start time of a process, in ticks since the machine booted. `None` if the process is not there or is a zombie, or if there
/// is no /proc.
fn started_at(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold spaces. After it: state, parent, … and the start time as the 22nd field of all.
    let after_name = stat.rsplit_once(')')?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    (fields.first()? != &"Z").then(|| fields.get(19).map(|start| (*start).to_owned()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_left_behind_is_stopped_and_another_is_left_in_peace() {
        let folder = std::env::temp_dir().join(format!("leftovers-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let sleep = || tokio::process::Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let (mut left_behind, mut unrelated) = (sleep(), sleep());
        let mut register = Register::open(folder.join("processes")).await.unwrap();
        register.add(left_behind.id(), Signal::SIGTERM);
        register.lines.push(format!("{} 1 15", unrelated.id().unwrap()));
        register.save().unwrap();

        Register::open(folder.join("processes")).await.unwrap();

        assert!(!left_behind.wait().await.unwrap().success());
        assert!(unrelated.try_wait().unwrap().is_none(), "a process with another start time was stopped");
        unrelated.kill().await.unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }
}
