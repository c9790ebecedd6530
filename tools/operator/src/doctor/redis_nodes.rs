//! The Redis servers: the one that is given, or the nodes of the cluster that is entered at the given ones.

use redis::aio::MultiplexedConnection;
use redis::{Client, ConnectionAddr};
use stream::Servers;

use super::finding::Finding;
use super::{redis_cluster, redis_server};

/// A server that can be reached.
pub(super) struct Node {
    /// Its address, if it is a node of a cluster.
    pub name: Option<String>,
    /// The connection.
    pub redis: MultiplexedConnection,
}

impl Node {
    /// The finding, with the name of the node.
    pub fn named(&self, finding: Finding) -> Finding {
        match &self.name {
            Some(name) => finding.at(name),
            None => finding,
        }
    }
}

/// Connects to the servers, and checks each of them and the cluster. Returns those that take writes and can be reached.
pub(super) async fn open(servers: &Servers, findings: &mut Vec<Finding>) -> Vec<Node> {
    let mut entrance = None;
    let mut away = Vec::new();
    for seed in servers.seeds() {
        match stream::redis::connect(seed).await {
            Ok(redis) => entrance = entrance.or(Some((seed, redis))),
            Err(error) => away.push((address(seed), error)),
        }
    }
    let Some((seed, mut redis)) = entrance else {
        if let Some((_, error)) = away.into_iter().next() {
            findings.push(redis_server::unreachable(&error));
        }
        return Vec::new();
    };
    for (address, error) in away {
        findings.push(Finding::warn(
            "redis.seeds",
            format!("{address}: {error:#}"),
            "processes that start now enter the cluster at the others; if they all go, none can start",
            "start it, or name a node in REDIS_URL that is there",
        ));
    }
    if redis_cluster::is_node(&mut redis).await {
        return redis_cluster::open(seed, redis, findings).await;
    }
    redis_server::check(&mut redis, findings).await;
    vec![Node { name: None, redis }]
}

/// The address of a server, without its password.
pub(super) fn address(server: &Client) -> String {
    server.get_connection_info().addr().to_string()
}

/// The server at another address, with the same user, password and certificates.
pub(super) fn at(server: &Client, host: &str, port: u16) -> Option<Client> {
    let info = server.get_connection_info();
    let host_of = |own: &str| if host.is_empty() { own.to_owned() } else { host.to_owned() };
    let address = match info.addr() {
        ConnectionAddr::Tcp(own, _) => ConnectionAddr::Tcp(host_of(own), port),
        ConnectionAddr::TcpTls { host: own, insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host: host_of(own), port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host.to_owned(), port),
    };
    Client::open(info.clone().set_addr(address)).ok()
}
