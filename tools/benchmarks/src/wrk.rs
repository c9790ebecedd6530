//! wrk: the HTTP load for api and nginx.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::bench::Bench;
use crate::tools;

/// The script that wrk runs for every ride.
const RIDES: &str =
    concat!(include_str!("timetable.lua"), "\n", include_str!("post_rides.lua"), "\n", include_str!("answers.lua"));

/// The script that wrk runs for every manifest.
const MANIFESTS: &str =
    concat!(include_str!("timetable.lua"), "\n", include_str!("manifests.lua"), "\n", include_str!("answers.lua"));

/// The script that wrk runs for every request about a wallet.
const WALLETS: &str = concat!(include_str!("wallets.lua"), "\n", include_str!("answers.lua"));

/// How long a response may take before wrk counts an error.
const ANSWER_WAIT: &str = "10s";

/// The load.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// Each connection sends the next request as soon as it has its response.
    Max,
    /// Like [`Pace::Max`], with a count of the statuses.
    MaxCounted,
    /// This number of rides per second.
    PerSecond(u32),
    /// Like [`Pace::Max`], with booked rides.
    Booked,
    /// Like [`Pace::Booked`], with the same request every time.
    Replayed,
}

/// The responses to a load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Answers {
    /// All responses.
    pub request_count: u64,
    /// Responses with a status above 399.
    pub error_count: u64,
    /// Failed connections, and responses that did not come in time.
    pub socket_error_count: u64,
    /// The duration of the load.
    pub seconds: f64,
    /// Latency, in ms.
    pub p50_ms: f64,
    /// Latency, in ms.
    pub p99_ms: f64,
    /// Latency, in ms.
    pub mean_ms: f64,
    /// With [`Pace::MaxCounted`]: responses with 201.
    pub created_count: u64,
    /// With [`Pace::MaxCounted`]: responses with 503 and `Retry-After`.
    pub refused_count: u64,
    /// With [`Pace::MaxCounted`]: all further responses.
    pub other_count: u64,
}

impl Answers {
    /// The number of accepted requests. Neither the api nor nginx responds with a status between 202 and 399.
    pub fn accepted_count(&self) -> u64 {
        self.request_count - self.error_count
    }

    /// Accepted requests per second.
    pub fn rate(&self) -> f64 {
        self.accepted_count() as f64 / self.seconds
    }

    fn parse(output: &str) -> Option<Self> {
        let line = output.lines().find_map(|line| line.strip_prefix("RESULT "))?;
        let mut numbers = line.split(' ').map(str::parse::<f64>);
        let mut next = || numbers.next()?.ok();
        Some(Self {
            request_count: next()? as u64,
            error_count: next()? as u64,
            socket_error_count: next()? as u64,
            seconds: next()? / 1e6,
            p50_ms: next()? / 1e3,
            p99_ms: next()? / 1e3,
            mean_ms: next()? / 1e3,
            created_count: next()? as u64,
            refused_count: next()? as u64,
            other_count: next()? as u64,
        })
    }
}

/// The requests about wallets that wrk sends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum About {
    /// Credits and debits in turn.
    Commands,
    /// Transfers to random others.
    Transfers,
    /// This path below that of a wallet is read.
    Read(&'static str),
}

/// Manifests for the container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manifests {
    /// The resource.
    pub resource: &'static str,
    /// The length of the photo, in bytes. `None`: there is none.
    pub photo_len: Option<usize>,
    /// Manifests per second. `None`: each connection sends the next one as soon as it has its response.
    pub rate: Option<u64>,
}

/// A load generator that is ready to run.
pub(crate) struct Wrk {
    program: PathBuf,
    rides: PathBuf,
    wallets: PathBuf,
    manifests: PathBuf,
}

impl Wrk {
    /// Writes the scripts.
    ///
    /// # Errors
    /// wrk is not installed.
    pub fn new(bench: &Bench) -> Result<Self> {
        let program = tools::wrk()?;
        let scripts = [("post_rides.lua", RIDES), ("wallets.lua", WALLETS), ("manifests.lua", MANIFESTS)];
        let [rides, wallets, manifests] = scripts.map(|(name, script)| (bench.folder.join(name), script));
        for (path, script) in [&rides, &wallets, &manifests] {
            std::fs::write(path, script).context("writing wrk's script")?;
        }
        Ok(Self { program, rides: rides.0, wallets: wallets.0, manifests: manifests.0 })
    }

    /// Posts rides to `port` over `connections` connections from one thread.
    ///
    /// # Errors
    /// wrk fails, or there was no response.
    pub async fn post(&self, port: u16, connections: u32, seconds: u64, pace: Pace) -> Result<Answers> {
        let mut command = self.command(connections, seconds, &self.rides);
        command.arg(format!("http://127.0.0.1:{port}/rides"));
        match pace {
            Pace::Max => {}
            Pace::MaxCounted => drop(command.args(["--", "count"])),
            Pace::Booked => drop(command.args(["--", "book"])),
            Pace::Replayed => drop(command.args(["--", "replay"])),
            Pace::PerSecond(rate) => drop(command.args(["--", "rate", &rate.to_string()])),
        }
        run(command).await
    }

    /// Asks about random wallets out of the file `ids`, over `connections` connections from one thread.
    ///
    /// # Errors
    /// wrk fails, or there was no response.
    pub async fn ask(&self, port: u16, connections: u32, seconds: u64, about: About, ids: &Path) -> Result<Answers> {
        let mut command = self.command(connections, seconds, &self.wallets);
        let what = match about {
            About::Commands => "commands",
            About::Transfers => "transfers",
            About::Read(path) => path,
        };
        command.arg(format!("http://127.0.0.1:{port}")).args(["--", what]).arg(ids);
        run(command).await
    }

    /// Posts manifests to a container, over `connections` connections from one thread.
    ///
    /// # Errors
    /// wrk fails, or there was no response.
    pub async fn post_manifests(
        &self,
        port: u16,
        connections: u32,
        seconds: u64,
        manifests: Manifests,
    ) -> Result<Answers> {
        let mut command = self.command(connections, seconds, &self.manifests);
        command.arg(format!("http://127.0.0.1:{port}/{}", manifests.resource)).arg("--");
        if let Some(len) = manifests.photo_len {
            command.args(["photo", &len.to_string()]);
        }
        if let Some(rate) = manifests.rate {
            command.args(["rate", &rate.to_string()]);
        }
        run(command).await
    }

    fn command(&self, connections: u32, seconds: u64, script: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-t1").arg(format!("-c{connections}")).arg(format!("-d{seconds}s"));
        command.args(["--timeout", ANSWER_WAIT, "-s"]).arg(script);
        command
    }
}

async fn run(mut command: Command) -> Result<Answers> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("running wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "wrk failed: {} {}", text.trim(), words.trim());
    let answers = Answers::parse(&text).with_context(|| format!("wrk printed no result: {}", text.trim()))?;
    ensure!(answers.request_count > 0, "not one request was answered: {}", text.trim());
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_script_is_read() {
        let output =
            "Running 8s test @ http://127.0.0.1:1/rides\n  1 threads\nRESULT 1000 10 3 8000000 250 1500 300.5 0 0 0\n";
        let answers = Answers::parse(output).unwrap();
        assert_eq!((answers.request_count, answers.accepted_count(), answers.socket_error_count), (1000, 990, 3));
        assert_eq!((answers.seconds, answers.p50_ms, answers.p99_ms, answers.mean_ms), (8.0, 0.25, 1.5, 0.3005));
        assert_eq!(answers.rate(), 123.75);
        assert_eq!(Answers::parse("unable to connect"), None);
        assert_eq!(Answers::parse("RESULT 1 2 x"), None);
    }
}
