//! The buttons of the page: faults on purpose, in development only. The page itself reads and writes nothing; what a button
//! does is done by the process that it concerns, or to Redis, which may lose anything at any time (I6).
//!
//! A page of another site must not press them. Three things stop it: the order is JSON with a header of our own, which a browser
//! does not let another site send without asking; the header holds a token that only a page from here can read; and this
//! process answers to its own host name alone, so that no other name can be pointed at it.

use anyhow::{Context, Result, bail, ensure};
use monitor::ORDER_HEADER;
use serde::Deserialize;
use stream::StreamArgs;

use crate::processes::Watch;
use crate::sample::Process;

/// What a button orders: `{"kind":"crash","consumer":"consumer0"}`.
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
    /// Redis loses the stream.
    Wipe,
}

/// Who carries out orders.
#[derive(Debug, Clone)]
pub(crate) struct FaultDesk {
    /// What a page has to know to give orders.
    pub token: String,
    watch: Watch,
    stream: StreamArgs,
}

impl FaultDesk {
    pub fn new(watch: Watch, stream: &StreamArgs) -> Self {
        let token = format!("{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>());
        Self { token, watch, stream: stream.clone() }
    }

    /// Carries out an order, by what was last known of the processes. Returns what will happen.
    ///
    /// # Errors
    /// The process is not watched or does not take orders, or Redis does not answer: says which.
    pub async fn carry_out(&self, order: &Order, processes: &[Process]) -> Result<String> {
        match order {
            Order::DoubleSend => {
                let leader = processes.iter().find(|process| process.is_leader == Some(true));
                let leader = leader.context("no streamer leads, or none is watched (DASHBOARD_WATCH)")?;
                self.pass_on(&leader.name).await?;
                Ok(format!("{} will send its next batch twice", leader.name))
            }
            Order::Crash { consumer } => {
                let process = processes.iter().find(|process| process.consumer.as_ref() == Some(consumer));
                let process = process.with_context(|| format!("no process is watched that consumes as {consumer}"))?;
                self.pass_on(&process.name).await?;
                Ok(format!("{consumer} will crash in its next batch, before its commit"))
            }
            Order::Wipe => {
                let mut redis = stream::redis::connect(&self.stream.redis_url).await?;
                let key = self.stream.key();
                let deleted: i64 = redis::cmd("DEL").arg(&key).query_async(&mut redis).await.context("wiping")?;
                Ok(if deleted > 0 { "the stream is wiped".to_owned() } else { "there was no stream".to_owned() })
            }
        }
    }

    async fn pass_on(&self, name: &str) -> Result<()> {
        let target = self.watch.targets.iter().find(|target| target.name() == name);
        let target = target.with_context(|| format!("{name} is not watched"))?;
        let request = self.watch.client.post(target.url("/fault")).header(ORDER_HEADER, "1");
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
