//! The registration of a consumer of another service: what the log knows of it, what it may not be used for, and how it ends.

use tests::{Process, World, wait_until};

use crate::own_database::{Service, all_have_offsets, start_streamer, told};
use crate::reaper::reap;

/// A log with rides that `s0` has folded, up to its head.
async fn world_with(service_ride_count: i64) -> (World, Service, Process) {
    let world = World::new().await;
    let service = Service::beside(&world).await;
    let streamer = start_streamer(&world).await;
    world.write_rides(service_ride_count).await;
    all_have_offsets(&world).await;
    service.start(&world, "s0", &["--drain"]).succeed().await;
    assert_eq!(told(&world, "s0").await, service_ride_count);
    (world, service, streamer)
}

#[tokio::test]
async fn an_adopted_log_has_the_records_of_a_consumer_that_it_was_told_of() {
    let (world, service, streamer) = world_with(20).await;
    streamer.stop().await;
    // The log learns the place with a registration, too.
    Process::start(&world, "consumer", &["s0", "--unregister"]).succeed().await;
    service.start(&world, "s0", &["--register"]).succeed().await;
    for _ in 0..2 {
        Process::start(&world, "adopt", &["--force"]).succeed().await;
        // The second start compares the token that the first one has noted.
        for _ in 0..2 {
            service.start(&world, "s0", &["--drain"]).succeed().await;
        }
    }
    let _streamer = start_streamer(&world).await;
    world.write_rides(20).await;
    all_have_offsets(&world).await;
    service.start(&world, "s0", &["--drain"]).succeed().await;
    service.has_everything(&world, "s0").await;
    // A state that the log was not told of is refused, also after that.
    service.client.batch_execute("UPDATE checkpoints SET last_offset = last_offset - 1, token = 7").await.unwrap();
    let refused = service.start(&world, "s0", &["--drain"]).fail(1).await;
    assert!(refused.contains("was put back to an older state"), "{refused}");
}

#[tokio::test]
async fn a_state_that_is_elsewhere_is_neither_copied_nor_the_baseline() {
    let (world, service, streamer) = world_with(20).await;
    let refused = Process::start(&world, "consumer", &["c1", "--copy-from", "s0"]).fail(1).await;
    assert!(refused.contains("keeps its state in a database of its own, and cannot be copied"), "{refused}");
    let drain = async |name: &str| Process::start(&world, "consumer", &[name, "--drain"]).succeed().await;
    drain("c0").await;
    assert_eq!(reap(&world, &["--keep", "0s"]).await.record_count, 20);
    world.write_rides(10).await;
    wait_until("all have offsets", async || world.settled_head().await == Some(30)).await;
    service.start(&world, "s0", &["--drain"]).succeed().await;
    world.write_rides(10).await;
    wait_until("all have offsets", async || world.settled_head().await == Some(40)).await;
    drain("c0").await;
    world.client().batch_execute("DELETE FROM checkpoints WHERE is_baseline").await.unwrap();
    assert_eq!(reap(&world, &["--keep", "0s"]).await.record_count, 10, "s0 is the slowest");
    let baseline = "SELECT last_offset FROM checkpoints WHERE is_baseline AND state IS NOT NULL";
    assert_eq!(world.number(baseline).await, 40, "it has the state of c0");
    streamer.stop().await;
}

#[tokio::test]
async fn a_consumer_is_unregistered_in_both_databases_however_often_it_takes() {
    let (world, service, _streamer) = world_with(20).await;
    // The log alone, as the reaper advises.
    let output = Process::start(&world, "consumer", &["s0", "--unregister"]).succeed().await;
    assert!(output.contains("its state is still in its own database: set STATE_DATABASE_URL"), "{output}");
    assert_eq!(service.totals("s0").await.0, 20);
    service.start(&world, "s0", &["--unregister"]).succeed().await;
    assert_eq!(service.number("SELECT count(*) FROM checkpoints").await, 0);
    let refused = service.start(&world, "s0", &["--unregister"]).fail(1).await;
    assert!(refused.contains("no consumer \"s0\" is registered"), "{refused}");
    let output = service.start(&world, "s0", &["--register"]).succeed().await;
    assert!(output.contains("at offset 0"), "{output}");
    service.start(&world, "s0", &["--drain"]).succeed().await;
    service.has_everything(&world, "s0").await;
    // Nothing is removed while one of the databases is away.
    let nowhere = ["s0", "--unregister", "--state-database-url", "postgres://app@127.0.0.1:1/nowhere"];
    Process::start(&world, "consumer", &nowhere).fail(1).await;
    assert_eq!(told(&world, "s0").await, 20);
}

#[tokio::test]
async fn a_log_that_has_forgotten_how_far_a_consumer_is_is_told_again() {
    let (world, service, _streamer) = world_with(20).await;
    let outside = service.start(&world, "s0", &[]);
    world.write_rides(1).await;
    wait_until("the log is told", async || told(&world, "s0").await == 21).await;
    // As after a crash: the newest commits of the log's own database that did not wait for the disk are gone.
    let forget = "UPDATE checkpoints SET last_offset = 5, told_token = 0;
                  SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'consumer s0'
                    AND datname = current_database()";
    world.client().batch_execute(forget).await.unwrap();
    wait_until("the log is told again", async || told(&world, "s0").await == 21).await;
    outside.stop().await;
}
