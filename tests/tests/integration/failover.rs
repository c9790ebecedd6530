//! A standby that lacks the last transactions is promoted. The lost records are of another past: no process takes that for
//! damage, and the log goes on.

use nix::sys::signal::Signal;
use tests::{PrivatePostgres, PrivateRedis, Process, World, wait_until};

/// The lowest checkpoint, 0 if no consumer is registered.
async fn folded_to(world: &World) -> i64 {
    world.number("SELECT COALESCE(min(last_offset), 0) FROM checkpoints").await
}

#[tokio::test]
async fn the_log_goes_on_when_the_promoted_standby_lacks_the_last_batches() {
    let (mut primary, redis) = (PrivatePostgres::start().await, PrivateRedis::start(&[]).await);
    let (world, standby) = World::with_standby(&primary, &redis).await;
    let mut streamer = Process::start(&world, "streamer", &[]);
    let mut consumers = ["c0", "c1"].map(|name| Process::start(&world, "consumer", &[name]));
    let registered = async || world.number("SELECT count(*) FROM checkpoints").await == 2;
    wait_until("both are registered", registered).await;
    streamer.wait_until_publishing(1).await;
    world.write_rides(1000).await;
    wait_until("all is folded", async || folded_to(&world).await == 1000).await;
    standby.follows(&primary).await;
    standby.stop_following().await;
    // One batch, which the streamer publishes as one page. It remembers where the page began.
    world.write_rides(500).await;
    wait_until("all is folded", async || folded_to(&world).await == 1500).await;
    wait_until("all is published", async || world.stream_len().await >= 1500).await;

    // It connects to the new server when a batch can be cut there at the same offsets.
    streamer.signal(Signal::SIGSTOP);
    primary.kill().await;
    standby.promote().await;
    let world = world.reconnected().await;
    assert_eq!(world.number("SELECT count(*) FROM rides").await, 1000, "500 rides are lost");
    world.write_rides(300).await;
    streamer.signal(Signal::SIGCONT);
    wait_until("all is folded", async || folded_to(&world).await == 1300).await;
    wait_until("all is published", async || streamer.output().contains("last_offset=1300")).await;
    world.assert_converged(&["c0", "c1"]).await;
    assert!(streamer.is_running() && consumers.iter_mut().all(Process::is_running));
    let output = streamer.output();
    assert!(!output.contains("records, but only"), "lost batches are no damage:\n{output}");
    streamer.stop().await;
    for consumer in consumers {
        consumer.stop().await;
    }
}
