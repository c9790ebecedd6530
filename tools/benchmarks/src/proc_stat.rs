//! CPU time and memory of processes, from /proc.

use anyhow::{Context, Result};

/// The ticks per second in which /proc counts time: 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// The CPU time of a process, in user and kernel together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    parent: u32,
    own_ticks: u64,
    /// The CPU time of children that have ended and were waited for.
    ended_children_ticks: u64,
}

/// Seconds of CPU that a process has used.
///
/// # Errors
/// It has ended.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    Ok(times(pid)?.own_ticks as f64 / TICKS_PER_SECOND)
}

/// Seconds of CPU that a process and all its children have used: Postgres has one process per session.
///
/// # Errors
/// It has ended.
pub(crate) fn cpu_seconds_with_children(pid: u32) -> Result<f64> {
    let own = times(pid)?;
    let mut ticks = own.own_ticks + own.ended_children_ticks;
    for entry in std::fs::read_dir("/proc").context("listing processes")?.flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // The child may have ended meanwhile.
        if let Ok(times) = times(child)
            && times.parent == pid
        {
            ticks += times.own_ticks;
        }
    }
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Memory in use, in MB.
///
/// # Errors
/// It has ended.
pub(crate) fn memory_mb(pid: u32) -> Result<f64> {
    status(pid, "VmRSS").context("a process has no memory any more")
}

/// The most memory that was ever in use, in MB; `None` once the process has ended.
pub(crate) fn memory_peak_mb(pid: u32) -> Option<f64> {
    status(pid, "VmHWM")
}

fn times(pid: u32) -> Result<Times> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    parse_stat(&text).with_context(|| format!("{path} is unreadable"))
}

fn status(pid: u32, name: &str) -> Option<f64> {
    parse_status(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?, name)
}

fn parse_stat(text: &str) -> Option<Times> {
    // The name, in parentheses, may hold spaces and parentheses. After it: state, parent, …
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Times {
        parent: u32::try_from(number(1)?).ok()?,
        own_ticks: number(11)? + number(12)?,
        ended_children_ticks: number(13)? + number(14)?,
    })
}

fn parse_status(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_are_found_behind_a_name_with_spaces() {
        let text = "42 (a (strange) name) S 7 42 42 0 -1 4194560 100 0 0 0 150 50 8 2 20 0 1 0 12345 1000 200";
        let times = parse_stat(text).unwrap();
        assert_eq!(times, Times { parent: 7, own_ticks: 200, ended_children_ticks: 10 });
        assert_eq!(parse_stat("42 (short) S 7"), None);
    }

    #[test]
    fn memory_is_in_megabytes() {
        let text = "Name:\tx\nVmHWM:\t   10240 kB\nVmRSS:\t    5120 kB\n";
        assert_eq!(parse_status(text, "VmHWM"), Some(10.0));
        assert_eq!(parse_status(text, "VmRSS"), Some(5.0));
        assert_eq!(parse_status(text, "VmSwap"), None);
    }

    #[test]
    fn this_process_can_be_read() {
        let own = std::process::id();
        // The own time is read first, because it grows.
        let own_s = cpu_seconds(own).unwrap();
        assert!(own_s >= 0.0 && cpu_seconds_with_children(own).unwrap() >= own_s);
        assert!(memory_mb(own).unwrap() > 0.0);
    }
}
