//! The log's client on real Redis Clusters: every node that answers leads to every stream, wherever the stream is.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser;
use connect::tls::{TlsArgs, trust};
use idempotency::{Operation, RedisStore, Store};
use pglog::{Partition, PartitionCount};
use redis::cmd;
use stream::end::StreamEnd;
use stream::refusal::{is_passing, moved_to};
use stream::resp::{Commands, Element, Elements};
use stream::wire::Wire;
use stream::{Servers, Stream};
use tests::{PrivateCluster, World, scratch_folder, wait_until, write_certificate};

const PASSWORD: &str = "badger72";

fn keys_of(log_id: &str) -> Vec<String> {
    let stream = Stream { name: "rocket-rides-log".to_owned(), log_id: Some(log_id.to_owned()) };
    PartitionCount::new(8).unwrap().partitions().map(|partition| stream.key(partition)).collect()
}

/// A search by a client that knows only these seeds.
async fn port_of(url: &str, key: &str) -> u16 {
    port_found(&url.parse().unwrap(), key).await.unwrap()
}

async fn port_found(servers: &Servers, key: &str) -> anyhow::Result<u16> {
    let node = servers.node_of(key).await?;
    Ok(node.get_connection_info().addr().to_string().rsplit_once(':').unwrap().1.parse().unwrap())
}

async fn append(wire: &mut Wire, key: &str) -> Result<(), String> {
    let mut add = Commands::default();
    add.add(&["XADD", key, "*", "a", "b"]);
    wire.send(&add).await.unwrap();
    let reply = wire.read(1).await.unwrap();
    match Elements::of(&reply).next() {
        Some(Element::Error(line)) => Err(String::from_utf8_lossy(line).into_owned()),
        _ => Ok(()),
    }
}

/// Waits until a search finds the key at this port.
async fn found_at(servers: &Servers, key: &str, port: u16) {
    wait_until("the key is found at its new place", async || {
        port_found(servers, key).await.is_ok_and(|found| found == port)
    })
    .await;
}

#[tokio::test]
async fn any_seed_leads_to_every_stream_of_every_log() {
    let cluster = PrivateCluster::start().await;
    let (mut spread, mut slots) = ([0; 3], Vec::new());
    for key in keys_of("c0ffee").iter().chain(&keys_of("bead")) {
        let writer = cluster.writer_of(key).await;
        spread[writer] += 1;
        for index in 0..cluster.node_count() {
            assert_eq!(port_of(cluster.url_of(index), key).await, cluster.port_of(writer), "{key} from node {index}");
        }
        assert_eq!(port_of(&cluster.url(), key).await, cluster.port_of(writer), "{key} from all");
        slots.push(cluster.ask::<i64>(0, cmd("CLUSTER").arg("KEYSLOT").arg(key)).await);
    }
    assert_eq!(spread, [6, 6, 4], "the streams are spread over the nodes");
    assert_eq!(slots[..8], slots[8..], "two logs are in the same slots, under other keys");

    // A seed alone is known for a node of a cluster as soon as it has answered.
    let servers: Servers = cluster.url_of(0).parse().unwrap();
    assert!(!servers.is_cluster());
    let key = &keys_of("c0ffee")[1];
    servers.wire(key, Duration::ZERO).await.unwrap();
    assert!(servers.is_cluster());

    // Nodes may give names instead of addresses, or leave the host out, if each knows it only by its own name.
    let writer = cluster.writer_of(key).await;
    let asked = usize::from(writer == 0);
    for (setting, value, host) in [
        ("cluster-announce-hostname", "localhost", "127.0.0.1"),
        ("cluster-preferred-endpoint-type", "hostname", "localhost"),
        ("cluster-preferred-endpoint-type", "unknown-endpoint", ""),
    ] {
        cluster.ask_all(cmd("CONFIG").arg("SET").arg(setting).arg(value)).await;
        let expected = format!("{host}:{}", cluster.port_of(writer));
        wait_until("the node gives such an address", async || {
            let seed = stream::redis::client(cluster.url_of(asked)).unwrap();
            let mut wire = Wire::connect(&seed, Duration::ZERO).await.unwrap();
            append(&mut wire, key).await.is_err_and(|line| moved_to(&line) == Some(&expected))
        })
        .await;
        assert_eq!(port_of(cluster.url_of(asked), key).await, cluster.port_of(writer), "{expected}");
    }
}

#[tokio::test]
async fn a_stream_is_found_again_after_it_has_moved() {
    let cluster = PrivateCluster::start().await;
    let servers: Servers = cluster.url().parse().unwrap();
    let key = &keys_of("c0ffee")[0];
    let mut wire = servers.wire(key, Duration::ZERO).await.unwrap();
    append(&mut wire, key).await.unwrap();
    let old = cluster.writer_of(key).await;

    let new = cluster.partner_of(old);
    cluster.fail_over_to(new).await;
    found_at(&servers, key, cluster.port_of(new)).await;
    let refusal = append(&mut wire, key).await.unwrap_err();
    assert!(
        moved_to(&refusal).is_some_and(|address| address.ends_with(&cluster.port_of(new).to_string())),
        "{refusal}"
    );
    let mut wire = servers.wire(key, Duration::ZERO).await.unwrap();
    append(&mut wire, key).await.unwrap();

    // While a slot moves, the old node serves what it still has, and refuses the rest for a while.
    let other = (old + 1) % 3;
    let moving = cluster.begin_move(key, other).await;
    append(&mut wire, key).await.unwrap();
    cluster.move_keys(moving).await;
    let refusal = append(&mut wire, key).await.unwrap_err();
    assert!(refusal.starts_with("ASK ") && is_passing(&refusal), "{refusal}");
    let refusal = format!("{:#}", servers.node_of(key).await.unwrap_err());
    assert!(refusal.contains("redis answers ASK"), "{refusal}");
    cluster.end_move(moving).await;
    found_at(&servers, key, cluster.port_of(other)).await;
    let mut wire = servers.wire(key, Duration::ZERO).await.unwrap();
    append(&mut wire, key).await.unwrap();
    assert_eq!(StreamEnd::read(&mut wire, key).await.unwrap().counts.unwrap().held, 4, "no entry is lost");
}

#[tokio::test]
async fn seeds_that_hang_or_are_dead_cost_nothing_while_another_answers() {
    let cluster = PrivateCluster::start().await;
    let keys = keys_of("c0ffee");
    let servers: Servers = cluster.url_of(0).parse().unwrap();
    for key in &keys {
        servers.node_of(key).await.unwrap();
    }
    let mut away = None;
    for (index, key) in keys.iter().enumerate() {
        if cluster.writer_of(key).await == 0 {
            away.get_or_insert(index);
        }
    }
    let key = &keys[away.unwrap()];

    // The replicas are behind the masters in the list, so the first seeds are the bad ones.
    cluster.pause(0);
    let started_at = Instant::now();
    for other in &keys {
        let fresh: Servers = cluster.url().parse().unwrap();
        let found = port_found(&fresh, other).await;
        assert!(found.is_ok() || cluster.find_writer(other).await.is_none_or(|writer| writer == 3), "{found:?}");
    }
    let elapsed = started_at.elapsed();
    assert!(elapsed < Duration::from_secs(8), "8 searches took {elapsed:?}");

    // Its replica takes over. The client knows the only seed, which hangs, and the masters that it has learned.
    found_at(&servers, key, cluster.port_of(3)).await;
    let started_at = Instant::now();
    for key in &keys {
        servers.node_of(key).await.unwrap();
    }
    let elapsed = started_at.elapsed();
    assert!(elapsed < Duration::from_secs(2), "8 searches took {elapsed:?} beside a seed that hangs");
    cluster.resume(0);
    cluster.wait_whole().await;

    // All seeds are dead: a node that was learned leads to the others.
    cluster.kill(0).await;
    cluster.kill(1).await;
    let elsewhere = &keys[1];
    assert_eq!(cluster.writer_of(key).await, 3);
    let servers_of_two: Servers = format!("{},{}", cluster.url_of(0), cluster.url_of(3)).parse().unwrap();
    assert_eq!(port_found(&servers_of_two, key).await.unwrap(), cluster.port_of(3));
    found_at(&servers, key, cluster.port_of(3)).await;
    let writer = cluster.writer_of(elsewhere).await;
    found_at(&servers, elsewhere, cluster.port_of(writer)).await;
}

#[tokio::test]
async fn a_node_that_hangs_is_given_up_sooner_than_a_server_alone() {
    let cluster = PrivateCluster::start_masters().await;
    let servers: Servers = cluster.url().parse().unwrap();
    let key = &keys_of("c0ffee")[0];
    let mut wire = servers.wire(key, Duration::ZERO).await.unwrap();
    let writer = cluster.writer_of(key).await;
    cluster.pause(writer);
    let started_at = Instant::now();
    let mut ping = Commands::default();
    ping.add(&["PING"]);
    wire.send(&ping).await.unwrap();
    wire.read(1).await.unwrap_err();
    let waited = started_at.elapsed();
    assert!((1900..3500).contains(&waited.as_millis()), "{waited:?}");
    let started_at = Instant::now();
    servers.node_of(key).await.unwrap_err();
    assert!(started_at.elapsed() < Duration::from_secs(3), "the search ends, too");
    cluster.resume(writer);
}

#[derive(Parser)]
struct Trust {
    #[command(flatten)]
    tls: TlsArgs,
}

/// Six nodes that talk TLS only and want passwords.
async fn start_guarded(folder: &Path) -> PrivateCluster {
    write_certificate(folder);
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (certificate, key, authority) = (path("server.crt"), path("server.key"), path("ca.pem"));
    let settings = [
        ["--tls-cluster", "yes"],
        ["--tls-replication", "yes"],
        ["--tls-cert-file", &certificate],
        ["--tls-key-file", &key],
        ["--tls-ca-cert-file", &authority],
        ["--tls-auth-clients", "no"],
        ["--requirepass", PASSWORD],
        ["--masterauth", PASSWORD],
    ];
    PrivateCluster::start_in(folder.to_owned(), settings.as_flattened()).await
}

#[tokio::test]
async fn every_node_gets_the_login_of_the_first_seed_over_tls() {
    let folder = scratch_folder();
    let cluster = start_guarded(&folder).await;
    let authority = folder.join("ca.pem");
    trust(Trust::parse_from(["trust", "--tls-ca-file", authority.to_str().unwrap()]).tls.tls_ca_file.unwrap());
    let keys = keys_of("c0ffee");
    let rights = ["+info", "+exists", "+xinfo|stream", "+xadd"];
    let mut user = cmd("ACL");
    user.arg("SETUSER").arg("streamer").arg("on").arg(format!(">{PASSWORD}")).arg("~rocket-rides-log:*").arg(&rights);
    cluster.ask_all(&user).await;
    // Only the first seed has user and password.
    let seeds: Vec<String> = (0..3).map(|index| format!("rediss://127.0.0.1:{}", cluster.port_of(index))).collect();
    let url = seeds.join(",").replacen("//", &format!("//streamer:{PASSWORD}@"), 1);
    let servers: Servers = url.parse().unwrap();
    for key in &keys {
        let mut wire = servers.wire(key, Duration::ZERO).await.unwrap();
        append(&mut wire, key).await.unwrap();
    }
    let old = cluster.writer_of(&keys[0]).await;
    cluster.fail_over_to(cluster.partner_of(old)).await;
    found_at(&servers, &keys[0], cluster.port_of(cluster.partner_of(old))).await;
    let mut wire = servers.wire(&keys[0], Duration::ZERO).await.unwrap();
    append(&mut wire, &keys[0]).await.unwrap();

    let wrong: Servers = url.replacen(PASSWORD, "wrong", 1).parse().unwrap();
    let refusal = format!("{:#}", wrong.node_of(&keys[0]).await.unwrap_err());
    assert!(refusal.contains("Password authentication failed"), "{refusal}");
    cluster.ask_all(cmd("ACL").arg("SETUSER").arg("streamer").arg("-exists")).await;
    let refusal = format!("{:#}", servers.node_of(&keys[0]).await.unwrap_err());
    assert!(refusal.contains("on a cluster the user needs the right +exists"), "{refusal}");
    assert!(!refusal.contains(PASSWORD), "{refusal}");
}

#[tokio::test]
async fn two_logs_on_one_cluster_have_streams_of_their_own() {
    let cluster = PrivateCluster::start_masters().await;
    let first = World::cut_on(&std::env::var("DATABASE_URL").unwrap(), &cluster.url(), 8).await;
    let second = World::cut_on(&std::env::var("DATABASE_URL").unwrap(), &cluster.url(), 8).await;
    let mut keys = Vec::new();
    for world in [&first, &second] {
        let log_id = pglog::prepare_session(world.client()).await.unwrap().log_id;
        let stream = Stream { name: "rocket-rides-log".to_owned(), log_id };
        for partition in PartitionCount::new(8).unwrap().partitions() {
            let row = world.client().query_one("SELECT stream_key($1)", &[&partition.number()]).await.unwrap();
            assert_eq!(stream.key(partition), row.get::<_, &str>(0));
        }
        keys.push(stream.key(Partition::FIRST));
    }
    assert_ne!(keys[0], keys[1]);
    let servers: Servers = cluster.url().parse().unwrap();
    let mut wire = servers.wire(&keys[0], Duration::ZERO).await.unwrap();
    append(&mut wire, &keys[0]).await.unwrap();
    assert_eq!(StreamEnd::read(&mut wire, &keys[1]).await.unwrap().offset, 0, "it is on the same node, and empty");
}

#[tokio::test]
async fn stores_that_need_a_server_of_their_own_refuse_a_cluster_and_say_so() {
    let cluster = PrivateCluster::start_masters().await;
    let client = stream::redis::client(cluster.url_of(0)).unwrap();
    let store = RedisStore::new(client.clone(), "idempotency");
    let hour = Duration::from_secs(3600);
    let error = store.claim(&Operation::new("[POST]/rides", "key", "payload", hour)).await.unwrap_err();
    let idempotency::Error::Redis(cause) = &error else { panic!("{error:?}") };
    assert!(cause.to_string().contains("operations need a Redis server of their own"), "{cause}");
    for index in 0..cluster.node_count() {
        assert_eq!(cluster.ask::<i64>(index, &cmd("DBSIZE")).await, 0, "nothing is half done");
    }
    let board = container::board::Board::new(client, "board");
    let error = format!("{:#}", board.leaders(1).await.unwrap_err());
    assert!(error.contains("the board needs a Redis server of its own"), "{error}");
    let several = stream::args::parse_redis_url(&cluster.url()).unwrap_err();
    assert_eq!(several, "give one server, and no Redis Cluster");
}
