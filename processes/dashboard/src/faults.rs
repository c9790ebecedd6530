//! The page's buttons inject faults, in development only. A process carries out an order itself; only the stream is wiped from
//! here, since Redis may lose anything at any time (I6).
//!
//! A page of another site must not be able to send orders. Three things prevent it. The order is JSON with a header of our own,
//! and a browser does not let another site send such a request without permission. The header holds a token that only a page
//! from here can read. This process answers only to its own host name, so no other name can be pointed at it.

use anyhow::{Context, Result, bail, ensure};
use monitor::ORDER_HEADER;
use serde::Deserialize;
use stream::Servers;

use crate::keys::Keys;
use crate::processes::Watch;
use crate::sample::Process;

/// The order of a button: `{"kind":"crash","consumer":"consumer0"}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Order {
    /// The leader sends each record of its next batch twice.
    DoubleSend,
    /// A consumer crashes in its next batch, after folding and before COMMIT.
    Crash {
        /// Its name.
        consumer: String,
    },
    /// Redis loses the stream of a partition, or all streams.
    Wipe {
        /// The partition; `None`: all.
        #[serde(default)]
        partition: Option<i32>,
    },
    /// A destination of the container is away for some seconds.
    Fail {
        /// Its name.
        destination: String,
    },
}

/// Passes orders on to the processes.
#[derive(Debug, Clone)]
pub(crate) struct FaultDesk {
    /// A page has to know this to give orders.
    pub token: String,
    watch: Watch,
    servers: Servers,
    keys: Keys,
}

impl FaultDesk {
    pub fn new(watch: Watch, servers: &Servers, keys: Keys) -> Self {
        let token = format!("{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>());
        Self { token, watch, servers: servers.clone(), keys }
    }

    /// Carries out an order. `processes` are those of the latest sample. Returns a sentence about the effect.
    ///
    /// # Errors
    /// The process is not watched or does not take orders, or Redis does not answer. The message says which.
    pub async fn carry_out(&self, order: &Order, processes: &[Process]) -> Result<String> {
        match order {
            Order::DoubleSend => {
                let leader = processes.iter().find(|process| process.is_leader == Some(true));
                let leader = leader.context("no streamer leads, or none is watched (DASHBOARD_WATCH)")?;
                self.pass_on(&leader.name, "/fault").await?;
                Ok(format!("{} will send its next batch twice", leader.name))
            }
            Order::Crash { consumer } => {
                let process = processes.iter().find(|process| process.consumer.as_ref() == Some(consumer));
                let process = process.with_context(|| format!("no process is watched that consumes as {consumer}"))?;
                self.pass_on(&process.name, "/fault").await?;
                Ok(format!("{consumer} will crash in its next batch, before its commit"))
            }
            Order::Fail { destination } => {
                let has_it = |process: &&Process| {
                    process.container.as_ref().is_some_and(|container| container.destinations.contains_key(destination))
                };
                let containers: Vec<&Process> = processes.iter().filter(has_it).collect();
                ensure!(!containers.is_empty(), "no container is watched that has the destination {destination}");
                for container in containers {
                    self.pass_on(&container.name, &format!("/fault?at={destination}")).await?;
                }
                Ok(format!("{destination} will be away for ten seconds, from the next unit on"))
            }
            Order::Wipe { partition } => self.wipe(*partition).await,
        }
    }

    /// Removes streams from the nodes that have them.
    async fn wipe(&self, partition: Option<i32>) -> Result<String> {
        let mut keys = self.keys.all();
        ensure!(!keys.is_empty(), "Postgres has not told yet which streams there are");
        keys.retain(|(shown, _)| partition.is_none_or(|wanted| shown.number() == wanted));
        ensure!(!keys.is_empty(), "this page does not show the partition {}", partition.unwrap_or_default());
        let mut deleted_count = 0;
        for (_, key) in &keys {
            let wiped = async {
                let mut redis = stream::redis::connect(&self.servers.node_of(key).await?).await?;
                anyhow::Ok(redis::cmd("DEL").arg(key).query_async::<i64>(&mut redis).await?)
            };
            deleted_count += wiped.await.with_context(|| format!("wiping {key}"))?;
        }
        Ok(match (deleted_count, partition) {
            (0, _) => "there was no stream".to_owned(),
            (_, Some(partition)) => format!("the stream of partition {partition} is wiped"),
            (1, None) => "the stream is wiped".to_owned(),
            (count, None) => format!("{count} streams are wiped"),
        })
    }

    async fn pass_on(&self, name: &str, path: &str) -> Result<()> {
        let target = self.watch.targets.iter().find(|target| target.name() == name);
        let target = target.with_context(|| format!("{name} is not watched"))?;
        let request = self.watch.client.post(target.url(path)).header(ORDER_HEADER, "1");
        let response = request.send().await.with_context(|| format!("{name} does not answer"))?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let why = response.text().await.unwrap_or_default();
        ensure!(!why.is_empty(), "{name} refuses with {status}");
        bail!("{name} refuses: {}", why.trim_end())
    }
}
