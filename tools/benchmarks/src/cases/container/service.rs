//! A container, and the receiver of its notices.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::CONNECTIONS;
use crate::bench::Bench;
use crate::load::free_port;
use crate::process::{Running, Spec};
use crate::wrk::{Answers, Wrk};

/// The resource with three destinations on this machine.
pub(super) const LOCAL: &str = "local";

/// The resource with a webhook.
pub(super) const TOLD: &str = "told";

/// Signs the notices.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// How long a process may take until it responds.
const READY_WAIT: Duration = Duration::from_secs(20);

/// How long the container may take until it has settled all units.
const SETTLE_WAIT: Duration = Duration::from_secs(120);

/// The running processes.
pub(super) struct Service {
    /// The port of the container.
    pub port: u16,
    /// The container.
    pub container: Running,
    /// The receiver.
    pub notices: Running,
    folder: PathBuf,
}

impl Service {
    /// Starts both on empty tables and folders.
    ///
    /// # Errors
    /// A process does not become ready.
    pub async fn start(bench: &Bench) -> Result<Self> {
        bench.fresh_tables().await?;
        bench.fresh_redis().await?;
        let (port, notices_port) = (free_port()?, free_port()?);
        // The folders of earlier services stay until the end: ext4 makes files slowly for a minute after it has deleted many.
        let folder = bench.folder.join(format!("container-{port}"));
        std::fs::create_dir_all(&folder).context("making the folder of the container")?;
        let config = folder.join("container.toml");
        std::fs::write(&config, declaration(&folder, notices_port)).context("writing the declaration")?;
        let (data, config, spool) = (text(&folder.join("notices")), text(&config), text(&folder.join("spool")));
        let args = ["notices", "--notices-port", &notices_port.to_string(), "--data", &data];
        let mut notices = start(bench, "notices", &args)?;
        wait_until_ready(&mut notices, &format!("http://127.0.0.1:{notices_port}/healthz")).await?;
        let args = ["--config", &config, "--container-port", &port.to_string(), "--container-spool", &spool];
        let mut container = start(bench, "container", &args)?;
        wait_until_ready(&mut container, &format!("http://127.0.0.1:{port}/units/0")).await?;
        Ok(Self { port, container, notices, folder })
    }

    /// As [`Service::start`], after a load like that which is measured. Returns the responses to it.
    ///
    /// # Errors
    /// A process does not become ready.
    pub async fn start_warm(bench: &Bench, wrk: &Wrk) -> Result<(Self, Answers)> {
        let service = Self::start(bench).await?;
        let answers = wrk.post_manifests(service.port, CONNECTIONS, bench.config.seconds, super::LOCAL).await?;
        Ok((service, answers))
    }

    /// Waits until every unit is settled.
    ///
    /// # Errors
    /// It takes too long.
    pub async fn settle(&mut self, bench: &Bench) -> Result<()> {
        let deadline = Instant::now() + SETTLE_WAIT;
        loop {
            self.container.check()?;
            let open = bench.number("SELECT count(*) FROM units WHERE settled_at IS NULL").await?;
            if open == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{open} units are not settled");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops both, and compares the destinations of [`LOCAL`] with the responses to these loads. wrk leaves during its last requests, which the
    /// container may still accept until it stops. Returns the transactions per unit: those that accept units, and those with
    /// verdicts.
    ///
    /// # Errors
    /// They differ, a response was an error, or a process fails.
    pub async fn end_local(mut self, bench: &Bench, loads: &[&Answers]) -> Result<f64> {
        let mut accepted_count = 0;
        for answers in loads {
            ensure!(answers.error_count == 0, "{} of {} requests failed", answers.error_count, answers.request_count);
            accepted_count += answers.accepted_count() as i64;
        }
        self.settle(bench).await?;
        let folder = self.folder.join("photos");
        self.stop().await?;
        let committed = bench.number("SELECT count(*) FROM units WHERE state = 'committed'").await?;
        let uncounted_max = i64::from(CONNECTIONS) * loads.len() as i64;
        ensure!(
            (0..=uncounted_max).contains(&(committed - accepted_count)),
            "{committed} units are committed, and {accepted_count} were confirmed"
        );
        let rows = bench.number("SELECT count(*) FROM manifests").await?;
        let photos = std::fs::read_dir(folder).context("reading the photos")?;
        // The folder of unfinished files and the id of the folder are the only other entries.
        let photos = photos.count() as i64 - 2;
        ensure!((rows, photos) == (committed, committed), "{committed} units: {rows} rows, {photos} photos");
        let transactions = bench
            .number(
                "-- benchmarks::transactions
                 SELECT (SELECT count(DISTINCT created_at) FROM units) + count(DISTINCT transaction_id) FROM staged_log_records",
            )
            .await?;
        Ok(transactions as f64 / committed as f64)
    }

    /// Stops both.
    ///
    /// # Errors
    /// A process fails.
    pub async fn stop(self) -> Result<()> {
        self.container.stop().await?;
        self.notices.stop().await
    }
}

fn start(bench: &Bench, name: &str, args: &[&str]) -> Result<Running> {
    let spec = Spec { name: name.to_owned(), ..Spec::of_workspace("container", args) };
    let mut environment = bench.environment().to_vec();
    environment.push(("NOTICES_SECRET", SECRET.to_owned()));
    Running::start(&spec, &environment, &bench.folder)
}

async fn wait_until_ready(process: &mut Running, url: &str) -> Result<()> {
    let deadline = Instant::now() + READY_WAIT;
    while reqwest::get(url).await.is_err() {
        process.check()?;
        ensure!(Instant::now() < deadline, "{} does not become ready", process.name());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn declaration(folder: &Path, notices_port: u16) -> String {
    let attachment = "[[resource.attachment]]\nname = \"photo\"\ncontent_types = [\"image/png\"]\n";
    let resource = |name, destinations| {
        format!(
            "[[resource]]\nname = \"{name}\"\nsubject = \"ride_id\"\ndocument = \"manifest\"\nreader = \"rows\"\n\
             destinations = [{destinations}]\n{attachment}"
        )
    };
    let resources = [resource(LOCAL, r#""rows", "photos", "board""#), resource(TOLD, r#""rows", "photos", "notices""#)];
    format!(
        r#"{}
[destination.rows]
kind = "rows"
table = "manifests"
[destination.photos]
kind = "files"
folder = "{}/photos"
takes = "photo"
[destination.board]
kind = "board"
redis = "REDIS_URL"
prefix = "container"
[destination.notices]
kind = "webhook"
url = "http://127.0.0.1:{notices_port}/notices"
secret = "NOTICES_SECRET"
allow_private = true
time_out = "5s"
"#,
        resources.join(""),
        folder.display()
    )
}
