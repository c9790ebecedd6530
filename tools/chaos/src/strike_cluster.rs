//! Faults of the nodes and slots of a run's Redis Cluster.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use launcher::{RedisCluster, SlotMove};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::sleep;

use crate::Fault;
use crate::cluster::PARTITION_COUNT;
use crate::world::World;

/// The longest time without a node. Its replica takes over after about four seconds.
const AWAY_MAX_MS: u64 = 8000;

/// The longest time between the move of a slot's keys and that of the slot.
const ASK_MAX_MS: u64 = 1500;

/// How often a step of a move is tried. A slot must not stay half way.
const TRY_COUNT_MAX: usize = 20;

/// The key of one of the streams.
pub(crate) async fn pick_stream(world: &World, rng: &mut StdRng) -> Result<String> {
    let partition = rng.random_range(0..PARTITION_COUNT);
    let query = "-- chaos::strike_cluster::pick_stream
                 SELECT stream_key($1)";
    let row = world.connect().await?.query_one(query, &[&partition]).await.context("asking for a stream's key")?;
    Ok(row.get(0))
}

/// Strikes a node or a slot of the cluster, and waits until the cluster is whole again.
pub(crate) async fn strike(world: &World, fault: Fault, rng: &mut StdRng) -> Result<String> {
    let key = pick_stream(world, rng).await?;
    let cluster = world.cluster.as_ref().context("there is no cluster")?;
    let mut nodes = cluster.nodes().await;
    let nodes = nodes.as_mut().context("the cluster is stopped")?;
    nodes.wait_formed().await?;
    let master = nodes.writer_of(&key).await.context("no node takes writes")?;
    // A replica is on the way to be a master, too.
    let count = nodes.nodes().len();
    let index = if rng.random_bool(0.2) { rng.random_range(0..count) } else { master };
    let away = Duration::from_millis(rng.random_range(300..AWAY_MAX_MS));
    let text = match fault {
        Fault::KillNode => {
            send(nodes, index, Signal::SIGKILL)?;
            sleep(away).await;
            nodes.start_again(index).await?;
            format!("node {index} for {} ms", away.as_millis())
        }
        Fault::StopNode => {
            send(nodes, index, Signal::SIGSTOP)?;
            sleep(away).await;
            send(nodes, index, Signal::SIGCONT)?;
            format!("node {index} for {} ms", away.as_millis())
        }
        Fault::HandOver => {
            let replica = (master + count / 2) % count;
            nodes.fail_over_to(replica).await?;
            format!("node {master} to node {replica}")
        }
        _ => {
            let to = other_master(nodes, master).await?;
            let moving = nodes.begin_move(&key, to).await?;
            let pause = Duration::from_millis(rng.random_range(0..ASK_MAX_MS));
            finish_move(nodes, moving, pause).await?;
            format!("slot {} from node {master} to node {to}", moving.slot)
        }
    };
    nodes.wait_formed().await?;
    Ok(text)
}

/// Some master beside this one.
async fn other_master(nodes: &RedisCluster, master: usize) -> Result<usize> {
    for (index, node) in nodes.nodes().iter().enumerate().filter(|(index, _)| *index != master) {
        let info: String = node.ask(redis::cmd("INFO").arg("replication")).await?;
        if info.lines().any(|line| line == "role:master") {
            return Ok(index);
        }
    }
    bail!("no other master")
}

async fn finish_move(nodes: &RedisCluster, moving: SlotMove, pause: Duration) -> Result<()> {
    for _ in 0..TRY_COUNT_MAX {
        let moved = async {
            nodes.move_keys(moving).await?;
            sleep(pause).await;
            nodes.end_move(moving).await
        };
        match moved.await {
            Ok(()) => return Ok(()),
            Err(_) => sleep(Duration::from_millis(500)).await,
        }
    }
    bail!("slot {} stays half way", moving.slot)
}

fn send(nodes: &RedisCluster, index: usize, signal: Signal) -> Result<()> {
    let pid = nodes.nodes()[index].pid().context("the node has ended by itself")?;
    ensure!(kill(Pid::from_raw(pid as i32), signal).is_ok(), "node {index} is gone");
    Ok(())
}
