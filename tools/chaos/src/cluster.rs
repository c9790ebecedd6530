//! The Redis Cluster of a run with partitions: where the streams are, and how its nodes are reached. Wallets and boards have the other
//! Redis.

use std::path::Path;

use anyhow::Result;
use launcher::RedisCluster;
use redis::aio::MultiplexedConnection;
use stream::Servers;
use tokio::sync::{Mutex, MutexGuard};

/// The log's partitions.
pub(crate) const PARTITION_COUNT: i32 = 8;

/// Six nodes.
pub(crate) struct Cluster {
    /// Faults take turns: each leaves a whole cluster behind. `None`: it was stopped.
    nodes: Mutex<Option<RedisCluster>>,
    /// `REDIS_URL`.
    pub url: String,
    servers: Servers,
}

impl Cluster {
    pub async fn start(folder: &Path) -> Result<Self> {
        let binary = launcher::find_redis().map_err(anyhow::Error::msg)?;
        let nodes = RedisCluster::start(&binary, folder, &[]).await?;
        let url = nodes.url();
        Ok(Self { servers: url.parse()?, url, nodes: Mutex::new(Some(nodes)) })
    }

    /// A connection to the node that has a stream.
    pub async fn connect(&self, key: &str) -> Result<MultiplexedConnection> {
        stream::redis::connect(&self.servers.node_of(key).await?).await
    }

    /// The nodes, for one fault at a time.
    pub async fn nodes(&self) -> MutexGuard<'_, Option<RedisCluster>> {
        self.nodes.lock().await
    }

    pub async fn stop(&self) -> Result<()> {
        match self.nodes.lock().await.take() {
            Some(nodes) => nodes.stop().await,
            None => Ok(()),
        }
    }
}
