//! Installs missing servers and tools by the machine's own package manager, without a question.

use std::io::IsTerminal;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::find::{find_clock_library, find_postgres, find_redis, given, is_on_path};
use crate::screen::tell;

/// The servers that have to be on this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needed {
    pub postgres: bool,
    pub redis: bool,
}

/// Finds the servers, or installs those that are missing.
pub(crate) fn install_missing(needed: Needed) -> Result<()> {
    let (postgres, redis) = missing(needed);
    let reasons: Vec<&str> = [&postgres, &redis].into_iter().flatten().map(String::as_str).collect();
    if reasons.is_empty() {
        return Ok(());
    }
    tell(&reasons.join("\n"));
    let Some(plan) = Plan::for_this_machine(postgres.is_some(), redis.is_some()) else {
        bail!(
            "install them, or use servers that run elsewhere: set DATABASE_URL and REDIS_URL, and run \
             bin/up --use DATABASE_URL,REDIS_URL"
        );
    };
    plan.run()?;
    match missing(needed) {
        (None, None) => Ok(()),
        (postgres, redis) => {
            bail!("installed, and still: {}", [postgres, redis].into_iter().flatten().collect::<Vec<_>>().join("; "))
        }
    }
}

/// Installs libfaketime. If that fails, chaos leaves out one fault and says so, so this is no reason to stop.
pub(crate) fn install_clock_library() {
    if find_clock_library().is_none()
        && is_on_path("apt-get")
        && let Err(error) = Plan::apt_get("libfaketime").run()
    {
        tell(&format!("going on without libfaketime: {error:#}"));
    }
}

/// The Python packages of the tests, and a copy of the list that names the installed ones.
const REQUIREMENTS: &str = "tests/requirements.txt";
const INSTALLED: &str = ".data/venv/requirements.txt";

/// Installs the Python packages of the tests into `.data/venv`, unless they are there.
pub(crate) fn install_python_packages() -> Result<()> {
    let required = std::fs::read(REQUIREMENTS).with_context(|| format!("reading {REQUIREMENTS}"))?;
    if std::fs::read(INSTALLED).is_ok_and(|installed| installed == required) {
        return Ok(());
    }
    // Debian's Python comes without the module venv.
    let makes_environments = || {
        let status = Command::new("python3").args(["-c", "import ensurepip, venv"]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    if !makes_environments() && is_on_path("apt-get") {
        Plan::apt_get("python3-venv").run()?;
    }
    let make = "mkdir -p .data && python3 -m venv --clear .data/venv".to_owned();
    let install = format!(".data/venv/bin/pip install --quiet --disable-pip-version-check -r {REQUIREMENTS}");
    let note = format!("cp {REQUIREMENTS} {INSTALLED}");
    Plan { commands: vec![make, install, note], needs_root: false }.run()
}

/// Browsers that the tests of the live page can use.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// Installs a browser, unless there is one. Debian has a package; on other systems playwright installs its own.
pub(crate) fn install_browser() -> Result<()> {
    if BROWSERS.iter().any(|name| is_on_path(name)) || given("CHROMIUM").is_some() {
        return Ok(());
    }
    if is_on_path("apt-get") && Path::new("/etc/debian_version").is_file() && !Path::new("/usr/bin/snap").is_file() {
        return Plan::apt_get("chromium").run();
    }
    Plan { commands: vec![".data/venv/bin/playwright install --with-deps chromium".to_owned()], needs_root: false }
        .run()
}

/// Programs that the tests run, each with its package.
const TEST_TOOLS: [(&str, &str); 6] = [
    ("systemd-analyze", "systemd"),
    ("groff", "groff-base"),
    ("pgbouncer", "pgbouncer"),
    ("curl", "curl"),
    ("jq", "jq"),
    ("redis-cli", "redis-tools"),
];

/// Installs the programs of [`TEST_TOOLS`] on systems that have the packages.
pub(crate) fn install_test_tools() -> Result<()> {
    let missing = TEST_TOOLS.iter().filter(|(program, _)| !is_on_path(program)).map(|(_, package)| *package);
    match missing.collect::<Vec<_>>().join(" ") {
        packages if !packages.is_empty() && is_on_path("apt-get") => Plan::apt_get_without_start(&packages).run(),
        _ => Ok(()),
    }
}

/// Programs that the benchmarks compare with: a file that shows whether it is installed, and its package.
const BENCHMARK_TOOLS: [(&str, &str); 5] = [
    ("wrk", "wrk"),
    ("nginx", "nginx-light"),
    ("redis-benchmark", "redis-tools"),
    ("valgrind", "valgrind"),
    ("/usr/include/hiredis/hiredis.h", "libhiredis-dev"),
];

/// Installs the programs that the benchmarks compare with. Without them the benchmarks leave cases out and say so.
pub(crate) fn install_benchmark_tools() {
    let is_missing = |&&(file, _): &&(&str, &str)| !Path::new(file).is_file() && !is_on_path(file);
    let packages: Vec<&str> = BENCHMARK_TOOLS.iter().filter(is_missing).map(|(_, package)| *package).collect();
    if packages.is_empty() || !is_on_path("apt-get") {
        return;
    }
    let plan = Plan::apt_get_without_start(&packages.join(" "));
    if let Err(error) = plan.run() {
        tell(&format!("going on without {}: {error:#}", packages.join(", ")));
    }
}

/// The reasons why Postgres and Redis are missing; `None` for a server that is there or is not needed.
fn missing(needed: Needed) -> (Option<String>, Option<String>) {
    (needed.postgres.then(find_postgres).and_then(Result::err), needed.redis.then(find_redis).and_then(Result::err))
}

struct Plan {
    commands: Vec<String>,
    needs_root: bool,
}

impl Plan {
    fn apt_get(packages: &str) -> Self {
        let install = format!("DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {packages}");
        Self { commands: vec!["apt-get update".to_owned(), install], needs_root: true }
    }

    /// As [`apt_get`](Self::apt_get), for packages with servers. Debian starts a server as soon as it is installed, unless this
    /// file says that none is to be started.
    fn apt_get_without_start(packages: &str) -> Self {
        let policy = "/usr/sbin/policy-rc.d";
        let install = format!(
            "if [ -e {policy} ]; then made=; else made=yes; printf '#!/bin/sh\\nexit 101\\n' > {policy}; chmod +x {policy}; fi; \
             DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {packages}; status=$?; \
             [ -z \"$made\" ] || rm -f {policy}; exit $status"
        );
        Self { commands: vec!["apt-get update".to_owned(), format!("{{ {install}; }}")], needs_root: true }
    }

    fn for_this_machine(postgres: bool, redis: bool) -> Option<Self> {
        let pick = |names: [&'static str; 2]| {
            [postgres.then_some(names[0]), redis.then_some(names[1])]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(" ")
        };
        if is_on_path("apt-get") {
            // The package would create and start a server. Only its binaries are needed here.
            let no_cluster = "mkdir -p /etc/postgresql-common/createcluster.d && echo 'create_main_cluster = false' \
                              > /etc/postgresql-common/createcluster.d/no-main-cluster.conf";
            let packages = pick(["postgresql", "redis-server"]);
            let mut commands = vec!["apt-get update".to_owned()];
            commands.extend(postgres.then(|| no_cluster.to_owned()));
            commands
                .push(format!("DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {packages}"));
            Some(Self { commands, needs_root: true })
        } else if is_on_path("brew") {
            let packages = pick(["postgresql@17", "redis"]);
            Some(Self { commands: vec![format!("brew install {packages}")], needs_root: false })
        } else {
            None
        }
    }

    fn run(&self) -> Result<()> {
        let line = self.commands.join(" && ");
        let mut command = if !self.needs_root || nix::unistd::geteuid().is_root() {
            Command::new("sh")
        } else if may_sudo() {
            let mut sudo = Command::new("sudo");
            sudo.arg("sh");
            sudo
        } else {
            bail!("this needs root. Run:\n\n    sudo sh -c \"{line}\"\n\nand then this again");
        };
        tell(&format!("installing: {line}"));
        let status =
            command.arg("-c").arg(&line).stdin(Stdio::inherit()).status().context("starting the installation")?;
        ensure!(status.success(), "the installation failed ({status}); the line was: {line}");
        Ok(())
    }
}

/// Whether sudo is installed and can run: without a password, or on a terminal where it may ask for one.
fn may_sudo() -> bool {
    let is_here = ["/usr/bin/sudo", "/usr/local/bin/sudo", "/bin/sudo"].iter().any(|path| Path::new(path).is_file());
    let asks_nothing = || {
        let status = Command::new("sudo").args(["-n", "true"]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    is_here && (std::io::stdin().is_terminal() || asks_nothing())
}
