//! The text of `REDIS_URL`: one server, or several nodes of a Redis Cluster with commas between them.

use anyhow::{Context, Result, bail, ensure};
use redis::{Client, ConnectionAddr, IntoConnectionInfo};

/// The servers in the text, at least one. Each has the user and the password of the first one.
///
/// # Errors
/// A sentence that says what to give instead.
pub(crate) fn parse(text: &str) -> Result<Vec<Client>> {
    let seeds: Vec<Client> = split(text).iter().map(|url| read_url(url.trim())).collect::<Result<_>>()?;
    let Some((first, others)) = seeds.split_first() else { bail!("give a URL such as redis://localhost:6379") };
    if others.is_empty() {
        return Ok(seeds);
    }
    ensure!(kind(first).is_some(), "a Redis Cluster needs TCP: give redis:// or rediss://");
    ensure!(first.get_connection_info().redis_settings().db() == 0, "a Redis Cluster has no database but 0");
    let mut alike = vec![first.clone()];
    for other in others {
        ensure!(kind(other) == kind(first), "give all nodes of a Redis Cluster with redis://, or all with rediss://");
        ensure!(
            login(other) == (None, None) || login(other) == login(first),
            "user and password of the first node are those of all: give them with the first"
        );
        alike.push(at(first, other.get_connection_info().addr().clone())?);
    }
    Ok(alike)
}

/// The same user, password and settings at another address.
pub(crate) fn at(first: &Client, address: ConnectionAddr) -> Result<Client> {
    Client::open(first.get_connection_info().clone().set_addr(address)).context("reading the address of a node")
}

/// The URLs. A comma that no URL follows is part of a password.
fn split(text: &str) -> Vec<String> {
    let mut urls: Vec<String> = Vec::new();
    for part in text.split(',') {
        match urls.last_mut() {
            Some(url) if !part.contains("://") => {
                url.push(',');
                url.push_str(part);
            }
            _ => urls.push(part.to_owned()),
        }
    }
    urls
}

/// The URL of one server.
fn read_url(url: &str) -> Result<Client> {
    let is_verified = !url.contains("#insecure");
    let client = url.into_connection_info().ok().and_then(|_| crate::redis::client(url).ok()).filter(|_| is_verified);
    let client = client.context("give a URL such as redis://localhost:6379, or rediss:// without #insecure")?;
    if let ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } = client.get_connection_info().addr() {
        ensure!(!host.contains(','), "give the nodes of a Redis Cluster as redis://host1:6379,redis://host2:6379");
    }
    Ok(client)
}

/// Whether a server is reached with TLS; `None` if it is not reached over TCP.
fn kind(server: &Client) -> Option<bool> {
    match server.get_connection_info().addr() {
        ConnectionAddr::Tcp(..) => Some(false),
        ConnectionAddr::TcpTls { .. } => Some(true),
        _ => None,
    }
}

fn login(server: &Client) -> (Option<&str>, Option<&str>) {
    let settings = server.get_connection_info().redis_settings();
    (settings.username(), settings.password())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_the_login_of_the_first_one() {
        let seeds = parse("rediss://u:p@h1:7000, rediss://h2,rediss://u:p@[::1]:7002").unwrap();
        let addresses: Vec<String> = seeds.iter().map(|seed| seed.get_connection_info().addr().to_string()).collect();
        assert_eq!(addresses, ["h1:7000", "h2:6379", "::1:7002"]);
        assert!(seeds.iter().all(|seed| login(seed) == (Some("u"), Some("p"))));
        assert!(seeds.iter().all(|seed| kind(seed) == Some(true)));
    }

    #[test]
    fn a_password_may_have_commas() {
        let seeds = parse("redis://:a,b@h1,redis://h2").unwrap();
        assert_eq!(seeds.len(), 2);
        assert!(seeds.iter().all(|seed| login(seed) == (None, Some("a,b"))));
    }

    #[test]
    fn a_text_that_names_no_cluster_is_refused_with_what_is_wanted() {
        let wanted = "give a URL such as redis://localhost:6379";
        for (text, complaint) in [
            ("", wanted),
            ("h", wanted),
            ("rediss://h/#insecure", wanted),
            ("redis://h1,h2", "give the nodes of a Redis Cluster as"),
            ("redis://h,", "give the nodes of a Redis Cluster as"),
            ("redis+unix:///a,redis+unix:///b", "a Redis Cluster needs TCP"),
            ("redis://h1/3,redis://h2/3", "a Redis Cluster has no database but 0"),
            ("rediss://h1,redis://h2", "give all nodes of a Redis Cluster with redis://"),
            ("redis://h1,redis+unix:///b", "give all nodes of a Redis Cluster with redis://"),
            ("redis://:a@h1,redis://:b@h2", "user and password of the first node"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(complaint), "{text}: {error}");
        }
    }
}
