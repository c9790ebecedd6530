//! A real cluster: found again after a stop, with a master killed, and with a port taken.

use super::*;
use crate::find::find_redis;

async fn set(cluster: &RedisCluster, key: &str) -> Result<()> {
    let servers: stream::Servers = cluster.url().parse()?;
    let mut connection = stream::redis::connect(&servers.node_of(key).await?).await?;
    Ok(redis::cmd("SET").arg(key).arg(1).query_async(&mut connection).await?)
}

#[tokio::test]
async fn a_cluster_is_found_again_and_outlives_a_master() {
    let data = std::env::temp_dir().join(format!("cluster-{:016x}", rand::random::<u64>()));
    let binary = find_redis().unwrap();
    let extra = ["--requirepass", "secret", "--masterauth", "secret"];
    let cluster = RedisCluster::start(&binary, &data, &extra).await.unwrap();
    set(&cluster, "found").await.unwrap();
    let url = cluster.url();
    cluster.stop().await.unwrap();

    let mut cluster = RedisCluster::start(&binary, &data, &extra).await.unwrap();
    assert_eq!(cluster.url(), url);
    let servers: stream::Servers = url.parse().unwrap();
    let holder = servers.node_of("found").await.unwrap().get_connection_info().addr().to_string();
    let index = cluster.nodes().iter().position(|node| holder.ends_with(&node.port().to_string())).unwrap();
    kill(Pid::from_raw(cluster.nodes()[index].pid().unwrap() as i32), Signal::SIGKILL).unwrap();
    cluster.nodes[index].ended().await;
    cluster.wait_until("the replica has taken over", async || set(&cluster, "found").await).await.unwrap();

    cluster.start_again(index).await.unwrap();
    cluster.wait_formed().await.unwrap();
    cluster.stop().await.unwrap();
    std::fs::remove_dir_all(data).unwrap();
}

#[tokio::test]
async fn a_cluster_whose_port_is_taken_is_made_anew() {
    let data = std::env::temp_dir().join(format!("cluster-{:016x}", rand::random::<u64>()));
    let binary = find_redis().unwrap();
    let cluster = RedisCluster::start_masters(&binary, &data, &[]).await.unwrap();
    let port = cluster.nodes()[1].port();
    cluster.stop().await.unwrap();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();

    let cluster = RedisCluster::start_masters(&binary, &data, &[]).await.unwrap();
    assert!(cluster.nodes().iter().all(|node| node.port() != port));
    set(&cluster, "new").await.unwrap();
    cluster.stop().await.unwrap();
    std::fs::remove_dir_all(data).unwrap();
}
