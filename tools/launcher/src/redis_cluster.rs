//! A private Redis Cluster: three masters on free TCP ports of 127.0.0.1, each with a replica or none. It is found again, with its
//! data, on the same ports. If it cannot be, it is made anew and starts empty: its data is a copy of the log.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::leftovers::end_servers_in;
use crate::ports::{ClaimedPort, claim_ports};
use crate::redis_server::RedisServer;
use crate::screen::tell;

/// The masters, and the replicas of each in a usual cluster.
const MASTER_COUNT: usize = 3;
const REPLICA_COUNT: usize = 1;

/// The hash slots of a Redis Cluster.
const SLOT_COUNT: usize = 16_384;

/// Where the ports of clusters lie. Each folder begins at a place of its own, so that a cluster that is stopped for a while seldom
/// loses its ports to another one.
const PORTS: std::ops::Range<u16> = 17_000..29_000;

/// The file with the ports, written when the cluster is formed: a folder without it was left half-made.
const PORTS_FILE: &str = "ports";

/// The longest wait until the nodes agree. A node that is started again takes writes after two seconds at the earliest.
const FORM_WAIT: Duration = Duration::from_secs(60);

/// The pause between two looks at a cluster that is being formed.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The settings of every node. A dead node must stop no other (`require-full-coverage`). A master dies within `node-timeout`
/// milliseconds and its replica takes over, but only a replica that has synced: so the first sync does not wait for others.
/// A replica that writes its first append-only file refuses to stop, unless it is forced to.
const SETTINGS: [&str; 18] = [
    "--cluster-enabled",
    "yes",
    "--cluster-config-file",
    "nodes.conf",
    "--cluster-node-timeout",
    "2000",
    "--cluster-require-full-coverage",
    "no",
    "--repl-diskless-sync",
    "yes",
    "--repl-diskless-sync-delay",
    "0",
    "--shutdown-timeout",
    "2",
    "--shutdown-on-sigterm",
    "force",
    "--bind",
    "127.0.0.1",
];

/// A running cluster. If it is dropped, its nodes are killed.
pub struct RedisCluster {
    nodes: Vec<RedisNode>,
}

/// A running node of a cluster. If it is dropped, it is killed.
pub struct RedisNode {
    server: RedisServer,
    url: String,
    ports: Arc<Ports>,
}

/// The ports of one node: for clients, and for the other nodes.
#[derive(Debug)]
struct Ports {
    client: ClaimedPort,
    bus: ClaimedPort,
}

impl RedisCluster {
    /// Starts three masters, each with one replica, on the folder `data`, and waits until they take writes and the replicas have
    /// synced. `extra` are further settings of every node, given as `--name`, `value`. With `--tls-cluster yes` the nodes talk TLS
    /// only; give the certificate too.
    ///
    /// # Errors
    /// A node does not start, or the nodes do not find each other.
    pub async fn start(binary: &Path, data: &Path, extra: &[&str]) -> Result<Self> {
        Self::start_with(binary, data, extra, REPLICA_COUNT).await
    }

    /// As [`start`](Self::start), without replicas: a dead master's slots come back with it.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_masters(binary: &Path, data: &Path, extra: &[&str]) -> Result<Self> {
        Self::start_with(binary, data, extra, 0).await
    }

    async fn start_with(binary: &Path, data: &Path, extra: &[&str], replica_count: usize) -> Result<Self> {
        std::fs::create_dir_all(data).with_context(|| format!("creating {}", data.display()))?;
        let data = data.canonicalize().with_context(|| format!("finding {}", data.display()))?;
        let count = MASTER_COUNT * (1 + replica_count);
        for index in 0..count {
            // They would hold the ports.
            end_servers_in(&folder(&data, index)).await;
        }
        let file = data.join(PORTS_FILE);
        if let Some(ports) = ports_before(&file, count) {
            let found = async {
                let cluster = Self::start_nodes(binary, &data, extra, ports).await?;
                cluster.wait_formed().await?;
                anyhow::Ok(cluster)
            };
            match found.await {
                Ok(cluster) => return Ok(cluster),
                Err(error) => tell(&format!(
                    "the Redis Cluster did not start on its files, which are only a copy of the log: it is made anew, and the \
                     streamer sends the copy again. The cause: {error:#}"
                )),
            }
        }
        for index in 0..count {
            empty(&folder(&data, index))?;
        }
        // An error means that it is not there.
        let _ = std::fs::remove_file(&file);
        let mut claimed = claim_ports(first_port(&data), 2 * count)?.into_iter();
        let pair = || Some(Arc::new(Ports { client: claimed.next()?, bus: claimed.next()? }));
        let cluster = Self::start_nodes(binary, &data, extra, std::iter::from_fn(pair).collect()).await?;
        cluster.form().await.context("forming the Redis Cluster")?;
        cluster.wait_formed().await?;
        let numbers: Vec<String> = cluster.nodes.iter().map(|node| node.ports.to_string()).collect();
        std::fs::write(&file, numbers.join(" ")).with_context(|| format!("writing {}", file.display()))?;
        Ok(cluster)
    }

    async fn start_nodes(binary: &Path, data: &Path, extra: &[&str], ports: Vec<Arc<Ports>>) -> Result<Self> {
        let mut starting = JoinSet::new();
        for (index, ports) in ports.into_iter().enumerate() {
            let (binary, folder) = (binary.to_owned(), folder(data, index));
            let extra: Vec<String> = extra.iter().map(|word| (*word).to_owned()).collect();
            starting.spawn(async move { (index, RedisNode::start(&binary, &folder, &extra, ports).await) });
        }
        let mut nodes = starting.join_all().await;
        nodes.sort_by_key(|(index, _)| *index);
        let nodes: Result<Vec<RedisNode>> = nodes.into_iter().map(|(_, node)| node).collect();
        Ok(Self { nodes: nodes? })
    }

    /// Makes one cluster of nodes that know nothing: slots for the masters, introductions, and a master for each replica.
    async fn form(&self) -> Result<()> {
        let (masters, replicas) = self.nodes.split_at(MASTER_COUNT);
        let first = &self.nodes[0];
        for (index, node) in self.nodes.iter().enumerate() {
            // Otherwise nodes with equal epochs settle first who is right.
            let () = node.ask(redis::cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(index + 1)).await?;
            if index > 0 {
                let (client, bus) = (node.ports.client.port, node.ports.bus.port);
                let () = first.ask(redis::cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(client).arg(bus)).await?;
            }
        }
        for (index, master) in masters.iter().enumerate() {
            let slot = |index: usize| index * SLOT_COUNT / MASTER_COUNT;
            let range = (slot(index), slot(index + 1) - 1);
            let () = master.ask(redis::cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(range.0).arg(range.1)).await?;
        }
        let expected = format!("cluster_known_nodes:{}", self.nodes.len());
        self.wait_until("the nodes know each other", async || {
            for node in &self.nodes {
                let info: String = node.ask(redis::cmd("CLUSTER").arg("INFO")).await?;
                ensure!(info.lines().any(|line| line == expected), "port {} does not know all nodes", node.port());
            }
            Ok(())
        })
        .await?;
        for (index, replica) in replicas.iter().enumerate() {
            let master: String = masters[index % MASTER_COUNT].ask(redis::cmd("CLUSTER").arg("MYID")).await?;
            let () = replica.ask(redis::cmd("CLUSTER").arg("REPLICATE").arg(master)).await?;
        }
        Ok(())
    }

    /// Waits until every slot is served, as every node sees it, and every replica has synced with its master.
    ///
    /// # Errors
    /// That is not so after a minute: a node is dead, for example.
    pub async fn wait_formed(&self) -> Result<()> {
        let deadline = Instant::now() + FORM_WAIT;
        // Callers spawn this, and the compiler does not see that an async closure could be sent to another thread.
        while let Err(error) = self.check_formed().await {
            if Instant::now() > deadline {
                return Err(error.context("waiting until the cluster is whole"));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    async fn check_formed(&self) -> Result<()> {
        let mut synced_count = 0;
        for node in &self.nodes {
            let info: String = node.ask(redis::cmd("CLUSTER").arg("INFO")).await?;
            for line in ["cluster_state:ok".to_owned(), format!("cluster_slots_ok:{SLOT_COUNT}")] {
                ensure!(info.lines().any(|found| found == line), "port {} does not say {line}", node.port());
            }
            let info: String = node.ask(redis::cmd("INFO").arg("replication")).await?;
            synced_count += usize::from(info.lines().any(|line| line == "master_link_status:up"));
        }
        let replica_count = self.nodes.len() - MASTER_COUNT;
        ensure!(synced_count == replica_count, "{synced_count} of {replica_count} replicas have synced");
        Ok(())
    }

    async fn wait_until(&self, what: &str, holds: impl AsyncFn() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + FORM_WAIT;
        while let Err(error) = holds().await {
            if Instant::now() > deadline {
                return Err(error.context(format!("waiting until {what}")));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// The value for REDIS_URL: all nodes as seeds, with commas between them.
    pub fn url(&self) -> String {
        let urls: Vec<&str> = self.nodes.iter().map(RedisNode::url).collect();
        urls.join(",")
    }

    /// The nodes. At first the masters stand before the replicas, and replica n is that of master n.
    pub fn nodes(&self) -> &[RedisNode] {
        &self.nodes
    }

    /// The nodes, for an owner who supervises each of them.
    pub fn into_nodes(self) -> Vec<RedisNode> {
        self.nodes
    }

    /// Starts a node that has ended once more, on its data and its ports.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start_again(&mut self, index: usize) -> Result<()> {
        self.nodes[index] = self.nodes[index].start_again().await?;
        Ok(())
    }

    /// Stops all nodes at once, those too that hang.
    ///
    /// # Errors
    /// A node did not stop in time and was killed.
    pub async fn stop(self) -> Result<()> {
        let mut stopping: JoinSet<Result<()>> = self.nodes.into_iter().map(RedisNode::stop).collect();
        let mut outcome = Ok(());
        while let Some(stopped) = stopping.join_next().await {
            outcome = outcome.and(stopped.context("stopping a node")?);
        }
        outcome
    }
}

impl RedisNode {
    async fn start(binary: &Path, folder: &Path, extra: &[String], ports: Arc<Ports>) -> Result<Self> {
        let (client, bus) = (ports.client.port.to_string(), ports.bus.port.to_string());
        let has_tls = extra.windows(2).any(|setting| setting[0] == "--tls-cluster" && setting[1] == "yes");
        let (port, scheme) = if has_tls { ("--tls-port", "rediss") } else { ("--port", "redis") };
        let mut settings = SETTINGS.to_vec();
        settings.extend([port, &client, "--cluster-port", &bus]);
        settings.extend(extra.iter().map(String::as_str));
        let server = RedisServer::start(binary, folder, &settings).await?;
        let password = server.password().map_or_else(String::new, |password| format!(":{password}@"));
        Ok(Self { server, url: format!("{scheme}://{password}127.0.0.1:{client}"), ports })
    }

    /// The port for clients, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.ports.client.port
    }

    /// The process id, to be remembered or killed; `None` if the node has ended and that was noticed.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// The node's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Asks this node over its unix socket, whatever certificates its port wants.
    ///
    /// # Errors
    /// It is away, or refuses the command.
    pub async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        let mut connection: MultiplexedConnection =
            stream::redis::connect(&stream::redis::client(&self.server.url())?).await?;
        Ok(command.query_async(&mut connection).await?)
    }

    /// Starts the node that has ended once more.
    pub(crate) async fn start_again(&self) -> Result<Self> {
        let server = self.server.start_again().await?;
        Ok(Self { server, url: self.url.clone(), ports: Arc::clone(&self.ports) })
    }

    /// Waits until the node ends by itself. Returns its exit status.
    pub async fn ended(&mut self) -> String {
        self.server.ended().await
    }

    /// Stops the node, even if it hangs.
    ///
    /// # Errors
    /// It did not stop in time and was killed.
    pub async fn stop(self) -> Result<()> {
        if let Some(pid) = self.pid() {
            // A stopped process acts on no other signal. An error means that the process has just ended.
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGCONT);
        }
        self.server.stop().await
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} {}", self.client.port, self.bus.port)
    }
}

/// The ports of the run before; `None` if there are not as many, or one is in use: the nodes find each other by their ports.
fn ports_before(file: &Path, count: usize) -> Option<Vec<Arc<Ports>>> {
    let text = std::fs::read_to_string(file).ok()?;
    let numbers: Vec<u16> = text.split_whitespace().map(|number| number.parse().ok()).collect::<Option<_>>()?;
    let claim = |pair: &[u16]| {
        let [client, bus] = *pair else { return None };
        Some(Arc::new(Ports { client: ClaimedPort::new(client)?, bus: ClaimedPort::new(bus)? }))
    };
    if numbers.len() == 2 * count { numbers.chunks(2).map(claim).collect() } else { None }
}

/// The first port that is tried for a cluster on this folder.
fn first_port(data: &Path) -> u16 {
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    PORTS.start + (hasher.finish() % PORTS.len() as u64) as u16
}

/// The folder of a node.
fn folder(data: &Path, index: usize) -> PathBuf {
    data.join(format!("node-{index}"))
}

fn empty(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => bail!("emptying {}: {error}", folder.display()),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "redis_cluster_tests.rs"]
mod tests;
