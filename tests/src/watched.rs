//! Processes that tell of themselves.

use std::collections::BTreeMap;

use crate::{Process, World};

/// A process with a monitor.
pub struct Watched {
    /// The process.
    pub process: Process,
    address: String,
    client: reqwest::Client,
}

impl Watched {
    /// Starts a binary in a world, with further arguments, and with a monitor on a free port.
    pub async fn start(world: &World, name: &str, args: &[&str]) -> Self {
        let mut process = Process::start(world, name, &[args, &["--monitor-port", "0"]].concat());
        let address = process.address_after("monitor started").await;
        Self { process, address, client: reqwest::Client::new() }
    }

    /// Where it tells of itself: `127.0.0.1:5010`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Status and text of what is at a path.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let response = self.client.get(format!("http://{}{path}", self.address)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// Whether it says that it moves.
    pub async fn is_ready(&self) -> bool {
        self.get("/readyz").await.0 == 200
    }

    /// Samples by name and labels, as they are written.
    pub async fn metrics(&self) -> BTreeMap<String, f64> {
        let (status, text) = self.get("/metrics").await;
        assert_eq!(status, 200);
        let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        samples
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
            .collect()
    }

    /// What was counted; 0 if it never happened.
    pub async fn metric(&self, name: &str) -> f64 {
        self.metrics().await.get(name).copied().unwrap_or(0.0)
    }
}
