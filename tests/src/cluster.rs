//! A Redis Cluster that belongs to one test, which may kill, stop and reshape it.

use std::path::PathBuf;

use launcher::{RedisCluster, SlotMove, find_redis};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis::FromRedisValue;

use crate::servers::{end, kill_server};
use crate::{scratch_folder, wait_until};

/// Six nodes: masters 0 to 2, and at first node 3 is the replica of node 0, and so on. Or three masters alone.
pub struct PrivateCluster {
    folder: PathBuf,
    cluster: RedisCluster,
}

impl PrivateCluster {
    /// Three masters with a replica each.
    pub async fn start() -> Self {
        Self::start_in(scratch_folder(), &[]).await
    }

    /// Three masters with a replica each, on a prepared folder; `settings` of every node are given as `--name`, `value`. The
    /// folder is removed with the cluster.
    pub async fn start_in(folder: PathBuf, settings: &[&str]) -> Self {
        let cluster = RedisCluster::start(&find_redis().unwrap(), &folder, settings).await.unwrap();
        Self { folder, cluster }
    }

    /// Three masters without replicas.
    pub async fn start_masters() -> Self {
        let folder = scratch_folder();
        let cluster = RedisCluster::start_masters(&find_redis().unwrap(), &folder, &[]).await.unwrap();
        Self { folder, cluster }
    }

    /// `REDIS_URL` with every node as a seed.
    pub fn url(&self) -> String {
        self.cluster.url()
    }

    /// `REDIS_URL` with this node as the only seed.
    pub fn url_of(&self, index: usize) -> &str {
        self.cluster.nodes()[index].url()
    }

    /// The port of a node.
    pub fn port_of(&self, index: usize) -> u16 {
        self.cluster.nodes()[index].port()
    }

    /// The number of nodes.
    pub fn node_count(&self) -> usize {
        self.cluster.nodes().len()
    }

    /// The other one of a master and its replica.
    pub fn partner_of(&self, index: usize) -> usize {
        (index + 3) % 6
    }

    /// Asks one node, and no other.
    pub async fn ask<T: FromRedisValue>(&self, index: usize, command: &redis::Cmd) -> T {
        self.cluster.nodes()[index].ask(command).await.unwrap()
    }

    /// Sends a command to every node.
    pub async fn ask_all(&self, command: &redis::Cmd) {
        for index in 0..self.node_count() {
            let () = self.ask(index, command).await;
        }
    }

    /// Waits until a node takes writes for a key, and returns its index.
    pub async fn writer_of(&self, key: &str) -> usize {
        let mut writer = None;
        wait_until("a node takes writes for the key", async || {
            writer = self.cluster.writer_of(key).await;
            writer.is_some()
        })
        .await;
        writer.unwrap()
    }

    /// The index of the node that takes writes for a key now; `None` while no node does.
    pub async fn find_writer(&self, key: &str) -> Option<usize> {
        self.cluster.writer_of(key).await
    }

    /// SIGKILL, and it stays away.
    pub async fn kill(&self, index: usize) {
        kill_server(self.cluster.nodes()[index].pid()).await;
    }

    /// Starts a node that was killed again, on its data and its port.
    pub async fn start_again(&mut self, index: usize) {
        self.cluster.start_again(index).await.unwrap();
    }

    /// SIGSTOP: its connections stay open, and it answers nothing.
    pub fn pause(&self, index: usize) {
        self.signal(index, Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&self, index: usize) {
        self.signal(index, Signal::SIGCONT);
    }

    fn signal(&self, index: usize, signal: Signal) {
        kill(Pid::from_raw(self.cluster.nodes()[index].pid().unwrap() as i32), signal).unwrap();
    }

    /// Waits until every slot is served, as every node sees it, and every replica has synced.
    pub async fn wait_whole(&self) {
        self.cluster.wait_formed().await.unwrap();
    }

    /// `CLUSTER FAILOVER`: a replica takes over from its master.
    pub async fn fail_over_to(&self, replica: usize) {
        self.cluster.fail_over_to(replica).await.unwrap();
    }

    /// Marks the slot of a key as on its way to another node.
    pub async fn begin_move(&self, key: &str, to: usize) -> SlotMove {
        self.cluster.begin_move(key, to).await.unwrap()
    }

    /// Moves the keys of a slot that is on its way: the old node answers `ASK`.
    pub async fn move_keys(&self, moving: SlotMove) {
        self.cluster.move_keys(moving).await.unwrap();
    }

    /// Ends the move: the old node answers `MOVED`.
    pub async fn end_move(&self, moving: SlotMove) {
        self.cluster.end_move(moving).await.unwrap();
    }
}

impl Drop for PrivateCluster {
    fn drop(&mut self) {
        for node in self.cluster.nodes() {
            end(node.pid(), &self.folder);
        }
    }
}
