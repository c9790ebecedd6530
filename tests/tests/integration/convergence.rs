//! The whole promise: many clients send rides over HTTP, faults strike everywhere, and at the end every consumer has SQL's sum,
//! to the millimetre.

use clap::Parser;
use common::shutdown::CancellationToken;
use nix::sys::signal::Signal;
use tests::{PrivateRedis, Process, World, wait_until};

use crate::api::Api;

const NAMES: [&str; 3] = ["consumer0", "consumer1", "consumer2"];

/// The seed is printed, so that a failure can be repeated: `FAULT_SEED=… bin/test convergence`.
fn seed() -> u64 {
    let seed = std::env::var("FAULT_SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    eprintln!("FAULT_SEED={seed}");
    seed
}

async fn post_rides(api: &Api, count: u64, concurrency: u16, seed: u64) -> simulator::Summary {
    let config = simulator::Config::parse_from([
        "simulator".to_owned(),
        format!("--api-port={}", api.port()),
        "--rate=max".to_owned(),
        format!("--count={count}"),
        format!("--concurrency={concurrency}"),
        format!("--seed={seed}"),
    ]);
    simulator::run(config, CancellationToken::new()).await.unwrap().rides.unwrap()
}

fn start(world: &World, name: &str, args: &[&str], seed: u64) -> Process {
    let seed = seed.to_string();
    Process::start(world, name, &[args, &["--fault-rate", "0.1", "--fault-seed", &seed]].concat())
}

async fn wait_for_convergence(world: &World, ride_count: i64) {
    let folded = format!("SELECT count(*) FROM checkpoints WHERE last_offset = {ride_count}");
    wait_until("every consumer is at the head", async || world.number(&folded).await == 3).await;
    world.assert_converged(&NAMES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_consumers_converge_on_sqls_own_sum_under_double_sends_and_crashes() {
    let (world, seed) = (World::new().await, seed());
    let api = Api::start(&world).await;
    let streamer = start(&world, "streamer", &[], seed);
    let consumers = NAMES.map(|name| start(&world, "consumer", &[name], seed));
    let summary = post_rides(&api, 6_000, 16, seed).await;
    assert_eq!((summary.accepted_count, summary.refused_count), (6_000, 0));
    wait_for_convergence(&world, 6_000).await;
    let (duplicates, crashes) = (
        world.number("SELECT sum(duplicate_count)::bigint FROM checkpoints").await,
        world.number("SELECT sum(crash_count)::bigint FROM checkpoints").await,
    );
    assert!(duplicates > 0 && crashes > 0, "faults were injected: {duplicates} duplicates, {crashes} crashes");
    for process in consumers {
        process.stop().await;
    }
    streamer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_consumers_converge_whatever_is_killed_restarted_or_wiped() {
    let mut redis = PrivateRedis::start(&[]).await;
    let (world, seed) = (World::with_redis(&redis.url()).await, seed());
    let api = Api::start(&world).await;
    let mut streamer = start(&world, "streamer", &[], seed);
    let mut consumers = Vec::from(NAMES.map(|name| start(&world, "consumer", &[name], seed)));
    for round in 0..6 {
        let posting = post_rides(&api, 1_000, 16, seed.wrapping_add(round));
        let disturbing = async {
            let before = world.sql_totals().await.0;
            wait_until("rides arrive", async || world.sql_totals().await.0 > before + 100).await;
            match round {
                0 => {
                    streamer.signal(Signal::SIGKILL);
                    streamer.ended().await;
                    streamer = start(&world, "streamer", &[], seed.wrapping_add(round));
                }
                1 => {
                    consumers.remove(1).kill().await;
                    consumers.push(start(&world, "consumer", &["consumer1"], seed.wrapping_add(round)));
                }
                2 => {
                    redis.kill().await;
                    redis.start_again().await;
                }
                3 => {
                    let _: () = redis::cmd("FLUSHALL").query_async(&mut world.redis().await).await.unwrap();
                }
                4 => {
                    // The streamer pauses, as on a suspended machine, while a second streamer runs.
                    streamer.signal(Signal::SIGSTOP);
                    let second = start(&world, "streamer", &[], seed);
                    wait_until("rides arrive", async || world.sql_totals().await.0 > before + 600).await;
                    streamer.signal(Signal::SIGCONT);
                    second.kill().await;
                }
                _ => {
                    let _: i64 = redis::cmd("XTRIM")
                        .arg(world.stream_name())
                        .arg("MAXLEN")
                        .arg(10)
                        .query_async(&mut world.redis().await)
                        .await
                        .unwrap();
                }
            }
        };
        let (summary, ()) = tokio::join!(posting, disturbing);
        assert_eq!(summary.accepted_count, 1_000, "Postgres is never away here");
    }
    wait_for_convergence(&world, 6_000).await;
    for process in consumers {
        process.stop().await;
    }
    streamer.stop().await;
}
