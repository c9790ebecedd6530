//! One Redis server: its connection, and its name if it is one of several.

use redis::aio::MultiplexedConnection;
use redis::{Client, ConnectionAddr};

use super::finding::Finding;

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
