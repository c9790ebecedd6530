//! Where Redis is: one server, or a Redis Cluster that is entered at any of its nodes.
//!
//! A node that does not have a key answers `MOVED` and the address of the node that has it. That is all that the log's client
//! needs of a cluster: it asks any node that answers, and goes where it is sent. Other answers of a cluster pass: while a node is
//! replaced, or a slot is on its way to another node, the caller tries again a little later.
//!
//! The cluster client of the redis crate shares one connection to a node between all callers, and a blocked read would hold up
//! the others.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::select_ok;
use redis::{Client, ConnectionAddr, IntoConnectionInfo};

use crate::resp::{Commands, Element, Elements};
use crate::wire::Wire;

/// Redirections that are followed for one key: a node may not know yet that another one has been replaced.
const REDIRECTION_COUNT_MAX: usize = 5;

/// Nodes that are remembered beside the seeds.
const LEARNED_LEN_MAX: usize = 100;

/// One Redis server, or the nodes by which a Redis Cluster is entered, with commas between them:
/// `redis://127.0.0.1:7000,redis://127.0.0.1:7001`. User, password and TLS of the first one are those of all nodes.
#[derive(Clone)]
pub struct Servers {
    seeds: Arc<[Client]>,
    /// Nodes that others have named. All seeds may be gone.
    learned: Arc<Mutex<Vec<Client>>>,
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

    /// Whether several nodes were given, so that this is a cluster.
    pub fn is_cluster(&self) -> bool {
        self.seeds.len() > 1
    }

    /// The server, or the node of the cluster, that has a key.
    ///
    /// # Errors
    /// No node can be asked, or the one that should have the key is away: back off and try again.
    pub async fn node_of(&self, key: &str) -> Result<Client> {
        Ok(self.find(key, Duration::ZERO).await?.0)
    }

    /// A connection to the server, or to the node of the cluster, that has a key. Replies must arrive in time, as
    /// [`Wire::connect`] says.
    ///
    /// # Errors
    /// As [`node_of`](Self::node_of).
    pub async fn wire(&self, key: &str, block: Duration) -> Result<Wire> {
        Ok(self.find(key, block).await?.1)
    }

    async fn find(&self, key: &str, block: Duration) -> Result<(Client, Wire)> {
        let (mut node, mut wire) = self.any_node(block).await?;
        for _ in 0..REDIRECTION_COUNT_MAX {
            if !wire.is_cluster() {
                return Ok((node, wire));
            }
            let Some(address) = ask_for(&mut wire, key).await? else { return Ok((node, wire)) };
            node = self.learn(&node, &address)?;
            wire = Wire::connect(&node, block)
                .await
                .with_context(|| format!("the node {address} has the stream {key}"))?;
        }
        bail!("the nodes of the cluster send each other the stream {key}")
    }

    /// The first node that answers.
    async fn any_node(&self, block: Duration) -> Result<(Client, Wire)> {
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let nodes = self.seeds.iter().cloned().chain(learned);
        let connecting = nodes.map(|node| {
            Box::pin(async move {
                let wire = Wire::connect(&node, block).await?;
                anyhow::Ok((node, wire))
            })
        });
        Ok(select_ok(connecting).await?.0)
    }

    /// The node at an address that another node has named.
    ///
    /// # Errors
    /// The address has no port.
    pub fn learn(&self, by: &Client, address: &str) -> Result<Client> {
        let (host, port) = address.rsplit_once(':').context("a node of the cluster names an address without a port")?;
        let port = port.parse().with_context(|| format!("a node of the cluster names the address {address}"))?;
        let info = by.get_connection_info();
        let host_of = |own: &str| if host.is_empty() { own.to_owned() } else { host.to_owned() };
        let address = match info.addr() {
            ConnectionAddr::Tcp(own, _) => ConnectionAddr::Tcp(host_of(own), port),
            ConnectionAddr::TcpTls { host: own, insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host: host_of(own), port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => bail!("REDIS_URL has a unix socket: a Redis Cluster needs TCP"),
        };
        let node = Client::open(info.clone().set_addr(address))?;
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = self.seeds.iter().chain(learned.iter()).any(|known| is_same(known, &node));
        if !is_known && learned.len() < LEARNED_LEN_MAX {
            learned.push(node.clone());
        }
        Ok(node)
    }
}

/// Whether both are at one address.
pub fn is_same(one: &Client, other: &Client) -> bool {
    one.get_connection_info().addr() == other.get_connection_info().addr()
}

/// The address of the node that has the key; `None` if it is this one.
async fn ask_for(wire: &mut Wire, key: &str) -> Result<Option<String>> {
    let mut question = Commands::default();
    question.add(&["EXISTS", key]);
    wire.send(&question).await?;
    let reply = wire.read(1).await?;
    match Elements::of(&reply).next() {
        Some(Element::Error(line)) => {
            let line = String::from_utf8_lossy(line);
            match moved_to(&line) {
                Some(address) => Ok(Some(address.to_owned())),
                None => bail!("redis answers {line}"),
            }
        }
        _ => Ok(None),
    }
}

/// The address in an error reply `MOVED 3999 127.0.0.1:7001`; `None` for other errors.
pub fn moved_to(line: &str) -> Option<&str> {
    line.strip_prefix("MOVED ")?.split(' ').nth(1)
}

impl FromStr for Servers {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let seeds: Result<Vec<Client>> = text.split(',').map(|url| read_url(url.trim())).collect();
        let seeds = seeds?;
        let is_tcp = |seed: &Client| !matches!(seed.get_connection_info().addr(), ConnectionAddr::Unix(_));
        ensure!(seeds.len() == 1 || seeds.iter().all(is_tcp), "a Redis Cluster needs TCP: give redis:// or rediss://");
        Ok(Self { seeds: seeds.into(), learned: Arc::default() })
    }
}

/// The URL of one server.
fn read_url(url: &str) -> Result<Client> {
    let is_verified = !url.contains("#insecure");
    let client = url.into_connection_info().ok().and_then(|_| crate::redis::client(url).ok()).filter(|_| is_verified);
    client.context("give a URL such as redis://localhost:6379, or rediss:// without #insecure")
}

/// The addresses, without passwords.
impl fmt::Debug for Servers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> =
            self.seeds.iter().map(|seed| seed.get_connection_info().addr().to_string()).collect();
        out.write_str(&addresses.join(", "))
    }
}

impl From<Client> for Servers {
    fn from(client: Client) -> Self {
        Self { seeds: [client].into(), learned: Arc::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirection_names_a_node() {
        assert_eq!(moved_to("MOVED 3999 127.0.0.1:7001"), Some("127.0.0.1:7001"));
        assert_eq!(moved_to("ASK 3999 127.0.0.1:7001"), None);
        let servers: Servers = "rediss://u:p@h1:7000,redis://h2".parse().unwrap();
        let node = |address: &str| servers.learn(servers.first(), address).unwrap();
        assert_eq!(node("127.0.0.1:7001").get_connection_info().addr().to_string(), "127.0.0.1:7001");
        assert_eq!(node(":7001").get_connection_info().addr().to_string(), "h1:7001", "an empty host is the same host");
        assert_eq!(node("::1:7002").get_connection_info().redis_settings().password(), Some("p"));
        assert_eq!(servers.learned.lock().unwrap().len(), 3);
    }

    #[test]
    fn several_servers_are_a_cluster() {
        assert!(!"redis://h".parse::<Servers>().unwrap().is_cluster());
        assert!("redis://h:1, redis://h:2".parse::<Servers>().unwrap().is_cluster());
        for bad in ["", "redis://h,", "h", "redis+unix:///a,redis+unix:///b", "rediss://h/#insecure"] {
            assert!(bad.parse::<Servers>().is_err(), "{bad}");
        }
    }
}
