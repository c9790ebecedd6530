//! Changes of a Redis Cluster by hand, as an operator makes them: a replica takes over, a slot moves to another node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use redis::{Cmd, cmd};
use tokio::time::{Instant, sleep, timeout};

use crate::redis_cluster::RedisCluster;

/// How long a node may take to answer whether it has a key.
const ANSWER_WAIT: Duration = Duration::from_millis(500);

/// The longest hand-over from a master to its replica.
const FAILOVER_WAIT: Duration = Duration::from_secs(20);

/// Redis gives a failover up after 5 s, for example if the other masters did not vote in time.
const FAILOVER_PATIENCE: Duration = Duration::from_secs(6);

/// How long a node may take to hear that another one is a master now.
const HEARSAY_WAIT: Duration = Duration::from_secs(5);

/// The pause between two looks at a node that is to become a master.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The keys of a slot that move at once, and how long that may take, in milliseconds.
const MOVED_COUNT_MAX: usize = 100;
const MOVE_WAIT_MS: u64 = 5000;

/// A slot on its way from one node to another.
#[derive(Debug, Clone, Copy)]
pub struct SlotMove {
    /// The slot's number.
    pub slot: u16,
    /// The index of the node that had the slot.
    pub from: usize,
    /// The index of the node that gets it.
    pub to: usize,
}

impl RedisCluster {
    /// The index of the node that takes writes for a key; `None` while no node does. It writes a key beside that key.
    pub async fn writer_of(&self, key: &str) -> Option<usize> {
        let probe = format!("probe:{{{}}}", stream::hash_tag(key).unwrap_or(key));
        for (index, node) in self.nodes().iter().enumerate() {
            let mut set = cmd("SET");
            set.arg(&probe).arg(1);
            if let Ok(Ok(())) = timeout(ANSWER_WAIT, node.ask(&set)).await {
                return Some(index);
            }
        }
        None
    }

    /// Lets a replica take over from its master, which goes on as its replica. No write is lost.
    ///
    /// # Errors
    /// The node is no replica, or its master does not hand over.
    pub async fn fail_over_to(&self, replica: usize) -> Result<()> {
        let node = &self.nodes()[replica];
        let deadline = Instant::now() + FAILOVER_WAIT;
        let mut asked_at: Option<Instant> = None;
        loop {
            let info: String = node.ask(cmd("INFO").arg("replication")).await?;
            if info.lines().any(|line| line == "role:master") {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "port {} is still a replica", node.port());
            if asked_at.is_none_or(|at| at.elapsed() > FAILOVER_PATIENCE) {
                let () = node.ask(cmd("CLUSTER").arg("FAILOVER")).await.context("asking for a failover")?;
                asked_at = Some(Instant::now());
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Begins to move the slot of a key: the node that has it still serves the keys that it has, and answers `ASK` for others.
    ///
    /// # Errors
    /// No node takes writes for the key, or a node does not answer.
    pub async fn begin_move(&self, key: &str, to: usize) -> Result<SlotMove> {
        let slot: u16 = self.nodes()[to].ask(cmd("CLUSTER").arg("KEYSLOT").arg(key)).await?;
        let from = self.writer_of(key).await.context("no node takes writes for the key")?;
        ensure!(from != to, "the node has the slot already");
        let deadline = Instant::now() + HEARSAY_WAIT;
        // A node may still believe that the other one is a replica.
        while let Err(error) = self.mark(SlotMove { slot, from, to }).await {
            ensure!(Instant::now() < deadline, error);
            sleep(LOOK_INTERVAL).await;
        }
        Ok(SlotMove { slot, from, to })
    }

    async fn mark(&self, SlotMove { slot, from, to }: SlotMove) -> Result<()> {
        self.set_slot(to, slot, "IMPORTING", from).await?;
        self.set_slot(from, slot, "MIGRATING", to).await
    }

    /// Moves all keys of the slot. From then on, until [`end_move`](Self::end_move), the old node answers `ASK` for each of them.
    ///
    /// # Errors
    /// A node does not answer.
    pub async fn move_keys(&self, moving: SlotMove) -> Result<()> {
        let (from, to) = (&self.nodes()[moving.from], &self.nodes()[moving.to]);
        loop {
            let mut list = cmd("CLUSTER");
            let keys: Vec<String> = from.ask(list.arg("GETKEYSINSLOT").arg(moving.slot).arg(MOVED_COUNT_MAX)).await?;
            if keys.is_empty() {
                return Ok(());
            }
            let mut migrate: Cmd = cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(to.port()).arg("").arg(0).arg(MOVE_WAIT_MS);
            let _: String = from.ask(migrate.arg("KEYS").arg(keys)).await.context("moving keys")?;
        }
    }

    /// Gives the slot to its new node, and tells every node that answers.
    ///
    /// # Errors
    /// The old or the new node does not answer.
    pub async fn end_move(&self, moving: SlotMove) -> Result<()> {
        // The new node comes first: after a crash in between both nodes still know where the slot is.
        for index in [moving.to, moving.from] {
            self.set_slot(index, moving.slot, "NODE", moving.to).await?;
        }
        for index in (0..self.nodes().len()).filter(|index| ![moving.to, moving.from].contains(index)) {
            // Replicas refuse, and the others hear of it anyway.
            let _ = timeout(ANSWER_WAIT, self.set_slot(index, moving.slot, "NODE", moving.to)).await;
        }
        Ok(())
    }

    async fn set_slot(&self, at: usize, slot: u16, state: &str, other: usize) -> Result<()> {
        let id: String = self.nodes()[other].ask(cmd("CLUSTER").arg("MYID")).await?;
        let mut set = cmd("CLUSTER");
        set.arg("SETSLOT").arg(slot).arg(state).arg(id);
        self.nodes()[at].ask(&set).await.with_context(|| format!("marking the slot {slot} as {state}"))
    }
}
