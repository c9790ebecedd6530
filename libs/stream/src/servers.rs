//! The Redis servers that hold the log's copy: one server, or the nodes of a Redis Cluster. Users: every process that reads or
//! writes a stream.
//!
//! A cluster is told from a server by what it answers, not by a setting. In a cluster each key is on one node. A node that is
//! asked about a key of another node names that node (`MOVED`), so every node leads to every key. The nodes that others named
//! are remembered: all seeds may be gone.
//!
//! The question is `EXISTS key`, so on a cluster every user of Redis needs the right `+exists`. Redis checks rights before it
//! redirects, and no command with a key is among the rights of all users. `CLUSTER SLOTS` would need a right as well, and would
//! list nodes that nobody needs.
//!
//! Everything else that a cluster answers while it changes (`ASK`, `CLUSTERDOWN`, `TRYAGAIN`, …) passes by itself: the caller
//! backs off and asks again. [`is_passing`](crate::refusal::is_passing) has the list.
//!
//! The redis crate's cluster client is not for the log: it shares one connection to a node between all callers, and a blocked
//! read would hold up the others.
//!
//! Source: <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{Client, ConnectionAddr};
use tokio::time::{sleep, timeout};

use crate::refusal::moved_to;
use crate::resp::{Commands, Element, Elements};
use crate::seeds;
use crate::wire::Wire;

/// Redirections that are followed for one key: a node may not know yet that another one has been replaced.
const REDIRECTION_COUNT_MAX: usize = 5;

/// How long one node may take to accept a connection and to answer the question. A node that hangs is replaced by the others
/// after seconds, so waiting longer for it is of no use.
const NODE_WAIT: Duration = Duration::from_secs(1);

/// The lead of one node over the next one. A node that hangs delays a search by so much, and a sound one is asked alone.
const HEAD_START: Duration = Duration::from_millis(50);

/// Nodes that are remembered beside the seeds. The oldest is forgotten first.
const LEARNED_LEN_MAX: usize = 100;

/// Keys whose nodes are remembered: a log has at most 64 partitions.
const PLACES_LEN_MAX: usize = 1000;

/// One Redis server, or the nodes by which a Redis Cluster is entered, with commas between them:
/// `redis://127.0.0.1:7000,redis://127.0.0.1:7001`. User, password and TLS of the first one are those of all nodes. Clones share
/// what they learn.
#[derive(Clone)]
pub struct Servers {
    seeds: Arc<[Client]>,
    map: Arc<Mutex<Map>>,
    is_cluster: Arc<AtomicBool>,
}

/// The cluster as far as it is known. All of it may be out of date.
#[derive(Default)]
struct Map {
    /// Nodes that others have named, the newest first.
    learned: VecDeque<Client>,
    /// The nodes on which keys were found.
    places: HashMap<String, Client>,
}

impl Servers {
    /// The only server, or the first node. For what does not belong to the log, and wants a server of its own.
    pub fn first(&self) -> &Client {
        &self.seeds[0]
    }

    /// The servers that were given.
    pub fn seeds(&self) -> &[Client] {
        &self.seeds
    }

    /// Whether this is a cluster. A single seed is known to be a node of one after the first
    /// [`wire`](Self::wire) or [`node_of`](Self::node_of).
    pub fn is_cluster(&self) -> bool {
        self.is_cluster.load(Ordering::Relaxed)
    }

    /// The server, or the node of the cluster, that has a key.
    ///
    /// # Errors
    /// No node leads to the key, or the one that should have it is away: back off and try again.
    pub async fn node_of(&self, key: &str) -> Result<Client> {
        Ok(self.find(key, Duration::ZERO).await?.0)
    }

    /// A connection to the server, or to the node of the cluster, that has a key. Replies must arrive in time, as
    /// [`Wire::connect`] says. After an error on the connection, a `MOVED` among them, call this again: a node that knows the
    /// key's new place is asked first.
    ///
    /// # Errors
    /// As [`node_of`](Self::node_of).
    pub async fn wire(&self, key: &str, block: Duration) -> Result<Wire> {
        Ok(self.find(key, block).await?.1)
    }

    /// The node of a key together with a connection to it, for users that keep one connection to each node.
    ///
    /// # Errors
    /// As [`node_of`](Self::node_of).
    pub async fn find(&self, key: &str, block: Duration) -> Result<(Client, Wire)> {
        if !self.is_cluster() {
            let wire = Wire::connect(self.first(), block).await?;
            if !wire.is_cluster() {
                return Ok((self.first().clone(), wire));
            }
            self.is_cluster.store(true, Ordering::Relaxed);
        }
        let nodes = self.nodes_for(key);
        let node_count = nodes.len();
        let mut nodes = nodes.into_iter();
        let mut searches = FuturesUnordered::new();
        let mut refusal = None;
        loop {
            if let Some(node) = nodes.next() {
                searches.push(self.follow(node, key, block));
            }
            tokio::select! {
                found = searches.next() => match (found, refusal.take()) {
                    (Some(Ok((node, wire))), _) => {
                        self.remember(key, &node);
                        return Ok((node, wire));
                    }
                    (Some(Err(error)), _) => refusal = Some(error),
                    (None, Some(error)) => {
                        return Err(error.context(format!("none of {node_count} nodes leads to the key {key}")));
                    }
                    (None, None) => bail!("there is no node to ask for the key {key}"),
                },
                () = sleep(HEAD_START), if nodes.len() > 0 => {}
            }
        }
    }

    /// The nodes to ask for a key, each once: first where it was, then the seeds, then those that others named.
    fn nodes_for(&self, key: &str) -> Vec<Client> {
        let map = self.map();
        let mut nodes: Vec<Client> = Vec::new();
        for node in map.places.get(key).into_iter().chain(self.seeds.iter()).chain(&map.learned) {
            if !nodes.iter().any(|known| is_same(known, node)) {
                nodes.push(node.clone());
            }
        }
        nodes
    }

    /// Asks a node for a key, and the node that it names, and so on.
    async fn follow(&self, mut node: Client, key: &str, block: Duration) -> Result<(Client, Wire)> {
        for _ in 0..=REDIRECTION_COUNT_MAX {
            let asked = timeout(NODE_WAIT, ask(&node, key, block)).await;
            let asked = asked.unwrap_or_else(|_| bail!("it does not answer within {NODE_WAIT:?}"));
            match asked.with_context(|| format!("asking the node {}", address(&node)))? {
                (wire, None) => return Ok((node, wire)),
                (_, Some(place)) => node = self.learn(&node, &place)?,
            }
        }
        bail!("the nodes of the cluster send each other the key {key}")
    }

    /// The node at an address that another node has named. It is remembered.
    ///
    /// # Errors
    /// The address has no port, or the node's name is unknown.
    fn learn(&self, by: &Client, place: &str) -> Result<Client> {
        let node = seeds::at(by, neighbour(by, place)?)?;
        let mut map = self.map();
        if !self.seeds.iter().any(|seed| is_same(seed, &node)) {
            map.learned.retain(|known| !is_same(known, &node));
            map.learned.push_front(node.clone());
            map.learned.truncate(LEARNED_LEN_MAX);
        }
        Ok(node)
    }

    fn remember(&self, key: &str, node: &Client) {
        let mut map = self.map();
        if map.places.len() >= PLACES_LEN_MAX {
            map.places.clear();
        }
        map.places.insert(key.to_owned(), node.clone());
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to a node, and the address of the node that has the key; `None` if it is this one.
async fn ask(node: &Client, key: &str, block: Duration) -> Result<(Wire, Option<String>)> {
    let mut wire = Wire::connect(node, block).await?;
    ensure!(
        wire.is_cluster(),
        "it is no node of a Redis Cluster, and REDIS_URL names several servers: give one server"
    );
    let mut question = Commands::default();
    question.add(&["EXISTS", key]);
    wire.send(&question).await?;
    let reply = wire.read(1).await?;
    let Some(Element::Error(line)) = Elements::of(&reply).next() else { return Ok((wire, None)) };
    let line = String::from_utf8_lossy(line);
    match moved_to(&line) {
        Some(place) => Ok((wire, Some(place.to_owned()))),
        None if line.starts_with("NOPERM") => {
            bail!("redis answers {line} (on a cluster the user needs the right +exists)")
        }
        None => bail!("redis answers {line}"),
    }
}

/// The address that a node gives for another one: `host:port`. An IPv6 address has no brackets there. An empty host is the host
/// at which the node itself was reached, and `?` is a name that was never set.
fn neighbour(by: &Client, place: &str) -> Result<ConnectionAddr> {
    let (host, port) = place.rsplit_once(':').context("a node of the cluster names an address without a port")?;
    let port = port.parse().with_context(|| format!("a node of the cluster names the address {place}"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ensure!(host != "?", "a node of the cluster has no name: set its cluster-announce-hostname");
    let host_of = |own: &str| if host.is_empty() { own.to_owned() } else { host.to_owned() };
    Ok(match by.get_connection_info().addr() {
        ConnectionAddr::Tcp(own, _) => ConnectionAddr::Tcp(host_of(own), port),
        ConnectionAddr::TcpTls { host: own, insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host: host_of(own), port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => bail!("REDIS_URL has a unix socket: a Redis Cluster needs TCP"),
    })
}

fn is_same(one: &Client, other: &Client) -> bool {
    one.get_connection_info().addr() == other.get_connection_info().addr()
}

/// The address without a password.
fn address(node: &Client) -> String {
    node.get_connection_info().addr().to_string()
}

impl FromStr for Servers {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(Self::from(seeds::parse(text)?))
    }
}

impl From<Client> for Servers {
    fn from(client: Client) -> Self {
        Self::from(vec![client])
    }
}

impl From<Vec<Client>> for Servers {
    fn from(seeds: Vec<Client>) -> Self {
        let is_cluster = Arc::new(AtomicBool::new(seeds.len() > 1));
        Self { seeds: seeds.into(), map: Arc::default(), is_cluster }
    }
}

/// The addresses, without passwords.
impl fmt::Debug for Servers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.seeds.iter().map(address).collect();
        out.write_str(&addresses.join(", "))
    }
}

#[cfg(test)]
mod tests;
