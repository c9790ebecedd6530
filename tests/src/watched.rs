//! Processes with metrics and health over HTTP.

use std::collections::BTreeMap;
use std::ops::Deref;

use crate::{Process, World};

/// A process with a monitor.
pub struct Watched {
    /// The process.
    pub process: Process,
    monitor: Monitor,
}

impl Watched {
    /// Starts a binary in a world, with further arguments, and with a monitor on a free port.
    pub async fn start(world: &World, name: &str, args: &[&str]) -> Self {
        let mut process = Process::start(world, name, &[args, &["--monitor-port", "0"]].concat());
        let monitor = Monitor::of(&mut process).await;
        Self { process, monitor }
    }
}

impl Deref for Watched {
    type Target = Monitor;

    fn deref(&self) -> &Monitor {
        &self.monitor
    }
}

/// The monitor of a process.
pub struct Monitor {
    address: String,
    client: reqwest::Client,
}

impl Monitor {
    /// The monitor of a process that has just been started.
    pub async fn of(process: &mut Process) -> Self {
        Self { address: process.address_after("monitor started").await, client: reqwest::Client::new() }
    }

    /// The address of its monitor: `127.0.0.1:5010`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Status and body of the response to GET `path`.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let response = self.client.get(format!("http://{}{path}", self.address)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// Whether `/readyz` answers 200.
    pub async fn is_ready(&self) -> bool {
        self.get("/readyz").await.0 == 200
    }

    /// The samples of `/metrics`. Their keys are name and labels as the process writes them.
    pub async fn metrics(&self) -> BTreeMap<String, f64> {
        let (status, text) = self.get("/metrics").await;
        assert_eq!(status, 200);
        let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        samples
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
            .collect()
    }

    /// The value of one sample; 0 if the process has not written it yet.
    pub async fn metric(&self, name: &str) -> f64 {
        self.metrics().await.get(name).copied().unwrap_or(0.0)
    }

    /// Orders a fault. Returns status and body of the response.
    pub async fn order(&self, path: &str) -> (u16, String) {
        let request = self.client.post(format!("http://{}{path}", self.address)).header("x-fault-order", "1");
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// Every metric has a help text, and a name of this project.
    pub async fn assert_every_metric_has_help(&self) {
        let (_, text) = self.get("/metrics").await;
        for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
            let name = line.split(' ').nth(2).unwrap();
            assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help text");
            assert!(name.starts_with("rocket_rides_"), "{name}");
        }
    }
}
