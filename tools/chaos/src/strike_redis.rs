//! Faults of Redis: it loses entries, returns to an older state, goes away, refuses to write, or has a wrong clock.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use rand::RngExt;
use rand::rngs::StdRng;
use redis::aio::MultiplexedConnection;

use crate::servers::Redis;
use crate::wallet_model;
use crate::world::World;
use crate::{Fault, strike_cluster};

/// The stream's key.
const STREAM: &str = "rocket-rides-log";

/// The step of the clock, forward or back.
const CLOCK_STEP_S: i64 = 3600;

async fn connect(redis: &Redis) -> Result<MultiplexedConnection> {
    stream::redis::connect(&stream::redis::client(redis.url())?).await
}

async fn command(connection: &mut MultiplexedConnection, words: &[&str]) -> Result<()> {
    let mut command = redis::Cmd::new();
    words.iter().for_each(|word| {
        command.arg(*word);
    });
    command.exec_async(connection).await.with_context(|| words.join(" "))
}

/// Loses entries of the stream, or all data of a server. In a run with a cluster it is one of the streams, and one of the nodes, or
/// the server of the wallets.
pub(crate) async fn lose(world: &World, fault: Fault, rng: &mut StdRng) -> Result<String> {
    let stream =
        if world.cluster.is_some() { strike_cluster::pick_stream(world, rng).await? } else { STREAM.to_owned() };
    let words: &[&str] = match fault {
        Fault::DelStream => &["DEL", &stream],
        Fault::TrimStream => &["XTRIM", &stream, "MAXLEN", "0"],
        _ => &["FLUSHALL"],
    };
    match &world.cluster {
        Some(cluster) if fault != Fault::Flushall || rng.random_bool(0.5) => {
            command(&mut cluster.connect(&stream).await?, words).await?;
        }
        _ => command(&mut connect(&*world.redis.lock().await).await?, words).await?,
    }
    Ok(words.join(" "))
}

/// Deletes the document of a wallet, or the mark.
pub(crate) async fn lose_wallet(world: &World, rng: &mut StdRng) -> Result<String> {
    let key = if rng.random_bool(0.2) {
        wallet_model::MARK.to_owned()
    } else {
        format!("{}{}", wallet_model::PREFIX, world.wallets.pick(rng))
    };
    let redis = world.redis.lock().await;
    command(&mut connect(&redis).await?, &["DEL", &key]).await?;
    Ok(key)
}

pub(crate) async fn restart(world: &World, fault: Fault, rng: &mut StdRng) -> Result<String> {
    let mut redis = world.redis.lock().await;
    let pause = Duration::from_millis(rng.random_range(300..4000));
    match fault {
        Fault::RedisLosesASecond => {
            let lost_len = redis.kill_losing_a_second().await?;
            return Ok(format!("{lost_len} bytes lost"));
        }
        Fault::RedisPutBack => {
            redis.photograph()?;
            tokio::time::sleep(pause).await;
            redis.put_back().await?;
        }
        Fault::RedisAway => redis.kill_and_restart(pause).await?,
        _ => {
            let pid = redis.pid()?;
            kill(pid, Signal::SIGSTOP).context("stopping redis")?;
            tokio::time::sleep(pause).await;
            kill(pid, Signal::SIGCONT).context("continuing redis")?;
        }
    }
    Ok(format!("{} ms", pause.as_millis()))
}

/// Makes Redis refuse writes for a while, and then allows them again in any case.
pub(crate) async fn refuse(world: &World, fault: Fault, rng: &mut StdRng) -> Result<String> {
    let redis = world.redis.lock().await;
    let mut connection = connect(&redis).await?;
    let (refuse, allow): (&[&[&str]], &[&str]) = match fault {
        Fault::RedisOom => (&[&["CONFIG", "SET", "maxmemory", "1"]], &["CONFIG", "SET", "maxmemory", "0"]),
        // No server listens at this port. The replica keeps and serves its data.
        Fault::RedisReadonly => (&[&["REPLICAOF", "127.0.0.1", "1"]], &["REPLICAOF", "NO", "ONE"]),
        _ => {
            redis.obstruct_saves(true)?;
            (&[&["CONFIG", "SET", "save", "3600 1"], &["BGSAVE"]], &["CONFIG", "SET", "save", ""])
        }
    };
    let outcome = async {
        for words in refuse {
            command(&mut connection, words).await?;
        }
        let refusal = wait_for_refusal(&mut connection).await?;
        tokio::time::sleep(Duration::from_millis(rng.random_range(300..3000))).await;
        Ok(refusal)
    };
    let outcome: Result<String> = outcome.await;
    // Redis may still load its data after a restart. The command is repeated until Redis accepts it.
    while let Err(error) = command(&mut connection, allow).await {
        world.history.note(&format!("{error:#}"));
        tokio::time::sleep(Duration::from_millis(100)).await;
        connection = connect(&redis).await?;
    }
    if fault == Fault::RedisMisconf {
        redis.obstruct_saves(false)?;
    }
    outcome
}

/// Tries a harmless write until Redis refuses it. Returns the code of the error.
async fn wait_for_refusal(connection: &mut MultiplexedConnection) -> Result<String> {
    for _ in 0..200 {
        if let Err(error) = redis::cmd("SET").arg("chaos").arg(1).exec_async(connection).await {
            return error.code().map(str::to_owned).context("redis went away");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("redis refuses nothing")
}

/// Steps the clock, and sets it back after a while.
pub(crate) async fn step_clock(world: &World, rng: &mut StdRng) -> Result<String> {
    let redis = world.redis.lock().await;
    let step_s = if rng.random_bool(0.5) { CLOCK_STEP_S } else { -CLOCK_STEP_S };
    ensure!(redis.step_clock(step_s)?, "there is no libfaketime");
    // The library reads its file once per second.
    tokio::time::sleep(Duration::from_millis(rng.random_range(2000..4000))).await;
    redis.step_clock(0)?;
    Ok(format!("by {step_s} s"))
}
