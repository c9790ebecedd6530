//! The Redis Cluster: whether every slot has a node that serves it, whether a dead node stops only its own partitions, and whether
//! a replica takes its place. Each node is checked by itself, because its settings and its users are its own.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use redis::Client;
use redis::aio::MultiplexedConnection;

use super::finding::Finding;
use super::redis_node::{Node, at};
use super::redis_server::info;
use super::{Log, redis_server, redis_setting};

/// The hash slots of a Redis Cluster.
const SLOT_COUNT: u32 = 16_384;

/// A node, as another one knows it.
#[derive(Debug, PartialEq, Eq)]
struct Member {
    id: String,
    host: String,
    port: u16,
    /// The master that it follows; `None`: it is a master itself.
    follows: Option<String>,
    /// Whether the nodes have agreed that it is dead, or one of them suspects it.
    has_failed: bool,
    slot_count: u32,
}

impl Member {
    /// `id host:port@bus,name flags master ping pong epoch link slot …`, as in a reply to CLUSTER NODES. `None` for a node whose
    /// address is not known.
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [id, place, flags, master, _, _, _, link, slots @ ..] = &words[..] else { return None };
        let (place, name) = place.split_once(',').unwrap_or((place, ""));
        let (host, port) = place.split('@').next()?.rsplit_once(':')?;
        // The name, if the nodes have names, stands before further fields.
        let name = name.split(',').next().filter(|name| !name.is_empty() && !name.contains('='));
        let has_flag = |wanted: &str| flags.split(',').any(|flag| flag == wanted);
        Some(Self {
            id: (*id).to_owned(),
            host: name.unwrap_or(host).to_owned(),
            port: port.parse().ok().filter(|port| *port > 0)?,
            follows: has_flag("slave").then(|| (*master).to_owned()),
            has_failed: has_flag("fail") || has_flag("fail?") || has_flag("noaddr") || *link == "disconnected",
            slot_count: slots.iter().filter_map(|slots| slot_count(slots)).sum(),
        })
    }

    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// The number of slots in `0-5460` or `7`; `None` for a slot that is on its way, `[93->-…]`.
fn slot_count(slots: &str) -> Option<u32> {
    let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
    (last.parse::<u32>().ok()? + 1).checked_sub(first.parse().ok()?)
}

/// Whether the server is a node of a cluster.
pub(super) async fn is_node(redis: &mut MultiplexedConnection) -> bool {
    info(redis).await.is_ok_and(|info| info.get("cluster_enabled").is_some_and(|enabled| enabled == "1"))
}

/// Checks the cluster that is entered at `seed`, and each of its nodes. Returns the masters that can be reached.
pub(super) async fn open(seed: &Client, mut redis: MultiplexedConnection, findings: &mut Vec<Finding>) -> Vec<Node> {
    let members = match members(&mut redis).await {
        Ok(members) => members,
        Err(error) => {
            findings.push(Finding::unseen("redis.cluster", &error));
            redis_server::check(&mut redis, findings).await;
            return vec![Node { name: None, redis }];
        }
    };
    findings.push(served(&mut redis, &members).await.unwrap_or_else(|e| Finding::unseen("redis.cluster", &e)));
    findings.push(replicas(&members));
    let mut nodes = Vec::new();
    for member in members.iter().filter(|member| !member.has_failed) {
        match connect(seed, member).await {
            Ok(redis) => nodes.push((member, Node { name: Some(member.address()), redis })),
            Err(error) => findings.push(Finding::fail(
                "redis.reachable",
                format!("{}: {error:#}", member.address()),
                "the partitions on this node are not published; users and passwords belong to one node each",
                "start it, create the user there too, or announce an address that this machine reaches (cluster-announce-ip)",
            )),
        }
    }
    let mut masters = Vec::new();
    for (member, mut node) in nodes {
        if member.follows.is_some() {
            findings.push(node_follows(&mut node).await);
            continue;
        }
        let mut own = Vec::new();
        redis_server::check(&mut node.redis, &mut own).await;
        findings.extend(own.into_iter().map(|finding| node.named(finding)));
        masters.push(node);
    }
    findings.push(full_coverage(&mut masters).await);
    findings.push(node_timeout(&mut masters).await);
    masters
}

async fn members(redis: &mut MultiplexedConnection) -> Result<Vec<Member>> {
    let text: String =
        redis::cmd("CLUSTER").arg("NODES").query_async(redis).await.context("asking for the nodes (+cluster|nodes)")?;
    Ok(text.lines().filter_map(Member::parse).collect())
}

async fn connect(seed: &Client, member: &Member) -> Result<MultiplexedConnection> {
    let client = at(seed, &member.host, member.port).context("its address cannot be read")?;
    stream::redis::connect(&client).await
}

/// Whether the cluster takes commands, and every slot is served.
async fn served(redis: &mut MultiplexedConnection, members: &[Member]) -> Result<Finding> {
    const CHECK: &str = "redis.cluster";
    let text: String = redis::cmd("CLUSTER").arg("INFO").query_async(redis).await.context("asking for CLUSTER INFO")?;
    let info: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once(':')).collect();
    let state = info.get("cluster_state").copied().unwrap_or("unknown");
    let served_count: u32 = members
        .iter()
        .filter(|member| member.follows.is_none() && !member.has_failed)
        .map(|member| member.slot_count)
        .sum();
    let master_count = members.iter().filter(|member| member.follows.is_none() && member.slot_count > 0).count();
    let failed: Vec<String> = members.iter().filter(|member| member.has_failed).map(Member::address).collect();
    let dead = if failed.is_empty() { String::new() } else { format!("; away: {}", failed.join(", ")) };
    Ok(if state == "ok" && served_count == SLOT_COUNT {
        Finding::ok(CHECK, format!("{master_count} masters serve all slots{dead}"))
    } else {
        Finding::fail(
            CHECK,
            format!(
                "its state is {state}, and {} of {SLOT_COUNT} slots are not served{dead}",
                SLOT_COUNT - served_count
            ),
            "partitions in these slots are not published; consumers read them from Postgres, more slowly",
            "start the nodes that are away, or give their slots to others: redis-cli --cluster fix",
        )
    })
}

/// Whether each master with slots has a replica that can take its place.
fn replicas(members: &[Member]) -> Finding {
    const CHECK: &str = "redis.replicas";
    let has_replica = |master: &Member| {
        members.iter().any(|member| member.follows.as_ref() == Some(&master.id) && !member.has_failed)
    };
    let masters = members.iter().filter(|member| member.follows.is_none() && member.slot_count > 0);
    let alone: Vec<String> = masters.filter(|master| !has_replica(master)).map(Member::address).collect();
    if alone.is_empty() {
        return Finding::ok(CHECK, "each master has one");
    }
    Finding::warn(
        CHECK,
        format!("none for {}", alone.join(", ")),
        "if such a node dies, its partitions are not published until it is back; consumers read them from Postgres",
        "add a replica: redis-cli --cluster add-node NEW ANY --cluster-slave --cluster-master-id ID",
    )
}

/// Whether a replica has the data of its master. One that never had takes its place for nothing.
async fn node_follows(node: &mut Node) -> Finding {
    const CHECK: &str = "redis.replica";
    let finding = match info(&mut node.redis).await {
        Err(error) => Finding::unseen(CHECK, &error),
        Ok(info) if info.get("master_link_status").is_some_and(|status| status == "up") => {
            Finding::ok(CHECK, "it follows its master")
        }
        Ok(_) => Finding::warn(
            CHECK,
            "it does not have the data of its master",
            "a replica that is not in sync does not take over",
            "see its log; with repl-diskless-sync-delay 0 the first sync begins at once",
        ),
    };
    node.named(finding)
}

/// Whether the other nodes go on without a dead one.
async fn full_coverage(masters: &mut [Node]) -> Finding {
    const CHECK: &str = "redis.full_coverage";
    let (mut covered, mut unseen) = (Vec::new(), 0);
    for node in masters {
        match redis_setting(&mut node.redis, "cluster-require-full-coverage").await.as_deref() {
            Some("no") => {}
            Some(_) => covered.extend(node.name.clone()),
            None => unseen += 1,
        }
    }
    match (covered.is_empty(), unseen) {
        (true, 0) => Finding::ok(CHECK, "a dead node stops no other"),
        (true, _) => Finding::unseen(CHECK, &anyhow::anyhow!("CONFIG is forbidden at {unseen} nodes")),
        (false, _) => Finding::fail(
            CHECK,
            format!("cluster-require-full-coverage is yes at {}", covered.join(", ")),
            "one dead node stops the publishing of all partitions",
            "at each node: CONFIG SET cluster-require-full-coverage no, and CONFIG REWRITE",
        ),
    }
}

/// How long a dead master is missed.
async fn node_timeout(masters: &mut [Node]) -> Finding {
    const CHECK: &str = "redis.node_timeout";
    let mut timeouts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in masters {
        if let Some(timeout_ms) = redis_setting(&mut node.redis, "cluster-node-timeout").await {
            timeouts.entry(timeout_ms).or_default().extend(node.name.clone());
        }
    }
    let told: Vec<String> = timeouts.iter().map(|(ms, nodes)| format!("{ms} ms at {}", nodes.join(", "))).collect();
    match told.len() {
        0 => Finding::unseen(CHECK, &anyhow::anyhow!("CONFIG is forbidden here")),
        1 => Finding::ok(CHECK, format!("{}: a dead master is replaced about two seconds after that time", told[0])),
        _ => Finding::warn(
            CHECK,
            told.join("; "),
            "the nodes do not agree when another one is dead",
            "CONFIG SET cluster-node-timeout to one value at each node",
        ),
    }
}

/// Whether the names of the streams are those of this log alone: many logs may share a cluster, which has one database.
pub(super) fn stream_name(log: &Log) -> Finding {
    const CHECK: &str = "redis.stream_name";
    match &log.stream.log_id {
        Some(log_id) => Finding::ok(CHECK, format!("the keys have the id of the log, {log_id}")),
        None => Finding::warn(
            CHECK,
            format!("the key is just {}, because the log has no id", log.stream.name),
            "a second log with this STREAM_NAME on the cluster would set the streams of this one aside, again and again",
            "see that no other log here has this STREAM_NAME; a log that is made with -v partitions has an id",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    const NODES: [&str; 4] = [
        "a1 127.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-5460 7 [93->-b2]",
        "b2 10.0.0.2:7001@17001,redis-2.example,shard-id=x slave a1 0 1 1 connected",
        "c3 127.0.0.1:7002@17002,,shard-id=x master,fail - 1 1 3 connected 5461-16383",
        "d4 :0@0 master,noaddr - 1 1 3 disconnected",
    ];

    #[test]
    fn the_nodes_of_a_cluster_are_read() {
        let members: Vec<Member> = NODES.iter().filter_map(|line| Member::parse(line)).collect();
        let [first, second, third] = &members[..] else { panic!("{members:?}") };
        assert_eq!((first.address().as_str(), first.slot_count, first.has_failed), ("127.0.0.1:7000", 5462, false));
        assert_eq!((second.address().as_str(), second.follows.as_deref()), ("redis-2.example:7001", Some("a1")));
        assert_eq!((third.address().as_str(), third.slot_count, third.has_failed), ("127.0.0.1:7002", 10923, true));
    }

    #[test]
    fn a_master_without_a_replica_is_named() {
        let members: Vec<Member> = NODES.iter().filter_map(|line| Member::parse(line)).collect();
        let finding = replicas(&members);
        assert_eq!((finding.verdict, finding.what.as_str()), (Verdict::Warn, "none for 127.0.0.1:7002"));
        assert_eq!(replicas(&members[..2]).verdict, Verdict::Ok);
    }
}
