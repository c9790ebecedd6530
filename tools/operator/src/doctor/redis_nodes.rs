//! The Redis servers: the one that is given, or the nodes of the cluster that is entered at the given ones.

use stream::Servers;

use super::finding::Finding;
use super::redis_node::{Node, address};
use super::{redis_cluster, redis_server};

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
