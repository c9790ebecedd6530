//! Memory stays flat while Redis is away and rides go on: no process queues records in memory.

use tests::{PrivateRedis, Process, World, wait_long_until};

/// The resident memory of a process, in KiB.
fn resident_kib(process: &Process) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Writes rides until there are `head` of them, and waits until every consumer has folded them.
async fn grow_to(world: &World, head: i64) {
    while world.number("SELECT count(*) FROM rides").await < head {
        world.write_rides(5_000).await;
    }
    let slowest = "SELECT COALESCE(min(last_offset), 0) FROM checkpoints";
    let patience = std::time::Duration::from_secs(300);
    wait_long_until(patience, "every consumer is there", async || world.number(slowest).await == head).await;
}

#[tokio::test]
async fn memory_stays_flat_while_redis_is_away_for_long() {
    let mut redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(redis.url().as_str()).await;
    let mut processes = vec![Process::start(&world, "streamer", &[])];
    for name in ["c0", "c1"] {
        processes.push(Process::start(&world, "consumer", &[name]));
    }
    processes[0].wait_for("leading").await;
    grow_to(&world, 5_000).await;
    redis.kill().await;
    grow_to(&world, 50_000).await;
    let before: Vec<i64> = processes.iter().map(resident_kib).collect();
    grow_to(&world, 400_000).await;
    let after: Vec<i64> = processes.iter().map(resident_kib).collect();
    for (before, after) in before.iter().zip(&after) {
        assert!(after - before < 8 * 1024, "eight times the rides, and KiB went from {before} to {after}");
        assert!(*after < 64 * 1024, "{after} KiB");
    }
    redis.start_again().await;
    world.assert_converged(&["c0", "c1"]).await;
    assert!(processes.iter_mut().all(Process::is_running), "every process still runs");
}
