//! What real clusters seldom answer. Their usual answers are tested on real clusters, in `cluster_client`.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A node that answers every question about a key with this line. Returns its port.
async fn node(answer: impl Fn(u16) -> String + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = answer(port);
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                const INFO: &str = "redis_version:7.0.15\r\nredis_mode:cluster\r\n";
                let mut input = [0; 1000];
                while let Ok(len @ 1..) = socket.read(&mut input).await {
                    let is_info = String::from_utf8_lossy(&input[..len]).contains("INFO");
                    let reply =
                        if is_info { format!("${}\r\n{INFO}\r\n", INFO.len()) } else { format!("{answer}\r\n") };
                    socket.write_all(reply.as_bytes()).await.unwrap();
                }
            });
        }
    });
    port
}

fn servers(ports: &[u16]) -> Servers {
    let urls: Vec<String> = ports.iter().map(|port| format!("redis://127.0.0.1:{port}")).collect();
    urls.join(",").parse().unwrap()
}

async fn refusal(servers: &Servers) -> String {
    format!("{:#}", servers.node_of("k").await.unwrap_err())
}

#[tokio::test]
async fn redirections_are_bounded() {
    let port = node(|own| format!("-MOVED 1 :{own}")).await;
    let refusal = refusal(&servers(&[port])).await;
    assert!(refusal.contains("send each other the key k"), "{refusal}");
}

#[tokio::test]
async fn an_answer_that_leads_nowhere_leaves_the_search_to_the_other_nodes() {
    for useless in ["-CLUSTERDOWN The cluster is down", "-ASK 1 :1", "-MOVED 1 :1", "-LOADING wait", "-MOVED 1 ?:1"] {
        let (bad, good) = (node(move |_| useless.to_owned()).await, node(|_| ":0".to_owned()).await);
        let found = servers(&[bad, good]).node_of("k").await.unwrap();
        assert!(address(&found).ends_with(&format!(":{good}")), "{useless}");
        assert!(refusal(&servers(&[bad])).await.starts_with("none of 1 nodes"), "{useless}");
    }
}

#[tokio::test]
async fn a_user_without_the_right_to_ask_is_told_which_right() {
    let port = node(|_| "-NOPERM this user has no permissions to run the 'exists' command".to_owned()).await;
    let refusal = refusal(&servers(&[port])).await;
    assert!(refusal.ends_with("(on a cluster the user needs the right +exists)"), "{refusal}");
}

#[test]
fn nodes_are_found_at_the_addresses_that_others_give() {
    let servers: Servers = "rediss://u:p@h1:7000,rediss://h2".parse().unwrap();
    let learned = |place: &str| servers.learn(servers.first(), place).unwrap();
    for (place, at) in [
        ("127.0.0.1:7001", "127.0.0.1:7001"),
        ("node3.example:7001", "node3.example:7001"),
        (":7001", "h1:7001"),
        ("::1:7002", "::1:7002"),
        ("[::1]:7002", "::1:7002"),
    ] {
        let node = learned(place);
        assert_eq!(address(&node), at);
        assert!(matches!(node.get_connection_info().addr(), ConnectionAddr::TcpTls { .. }), "TLS as the first one");
        assert_eq!(node.get_connection_info().redis_settings().password(), Some("p"), "the password of the first one");
    }
    for bad in ["", "h", "h:", "h:x", "h:70000", "?:7001"] {
        assert!(servers.learn(servers.first(), bad).is_err(), "{bad}");
    }
}

#[test]
fn the_nodes_named_last_are_remembered() {
    let servers: Servers = "redis://h1,redis://h2".parse().unwrap();
    for number in 0..=LEARNED_LEN_MAX {
        servers.learn(servers.first(), &format!("n{number}:6379")).unwrap();
    }
    servers.learn(servers.first(), "n1:6379").unwrap();
    servers.learn(servers.first(), "h2:6379").unwrap();
    let nodes = servers.nodes_for("k");
    let addresses: Vec<String> = nodes.iter().map(address).collect();
    assert_eq!(addresses[..4], ["h1:6379", "h2:6379", "n1:6379", "n100:6379"]);
    assert_eq!(nodes.len(), 2 + LEARNED_LEN_MAX, "the oldest one is forgotten");
    servers.remember("k", &nodes[3]);
    assert_eq!(address(&servers.nodes_for("k")[0]), "n100:6379", "where the key was is asked first");
}

#[test]
fn several_servers_are_a_cluster() {
    assert!(!"redis://h".parse::<Servers>().unwrap().is_cluster());
    let servers: Servers = "redis://u:secret@h:1, redis://h:2".parse().unwrap();
    assert!(servers.is_cluster());
    assert_eq!(format!("{servers:?}"), "h:1, h:2", "no password");
}
