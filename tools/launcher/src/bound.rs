//! Children that end with the launcher, however it ends: each has a process group of its own, is killed if the launcher gives
//! it up, and gets a signal from Linux if the launcher was killed.

use std::ffi::OsStr;

use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::find::is_on_path;
use crate::outside::leads_outside;

/// A command for a child that gets `signal` when the launcher dies. Its arguments are still to be added.
pub(crate) fn bound(program: impl AsRef<OsStr>, signal: Signal) -> Command {
    let mut command = tied(&[], program, signal);
    // Ctrl-C reaches the launcher alone, which then stops its children in order.
    command.process_group(0);
    command
}

/// As [`bound`], for a program that belongs to the terminal: Ctrl-C reaches it too.
pub(crate) fn bound_to_terminal(program: impl AsRef<OsStr>, signal: Signal) -> Command {
    tied(&[], program, signal)
}

/// As [`bound`], for a private server. `before` starts it as another user, which takes the signal away: so this comes first.
/// Variables of the shell that would change the server, such as `PGPORT`, are left out.
pub(crate) fn bound_server(before: &[&str], program: impl AsRef<OsStr>, signal: Signal) -> Command {
    let mut command = tied(before, program, signal);
    command.process_group(0);
    for (name, _) in std::env::vars_os().filter(|(name, _)| leads_outside(name)) {
        command.env_remove(name);
    }
    command
}

fn tied(before: &[&str], program: impl AsRef<OsStr>, signal: Signal) -> Command {
    let mut words: Vec<&OsStr> = before.iter().map(OsStr::new).collect();
    // A system that is not Linux has no such signal: there the child outlives a launcher that is killed.
    if cfg!(target_os = "linux") && is_on_path("setpriv") {
        words.extend(["setpriv", "--pdeathsig", signal.as_str().trim_start_matches("SIG")].map(OsStr::new));
    }
    words.push(program.as_ref());
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).kill_on_drop(true);
    command
}
