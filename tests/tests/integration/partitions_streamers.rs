//! Streamers share the partitions of a log: each is led by one of them, whatever dies, hangs or is away (P2).

use nix::sys::signal::Signal;
use tests::{PrivateRedis, Process, World, wait_until};

use crate::partitions_fixture::{
    is_all_cut, keys, led, member_count, record_counts, shares, stage, start_streamer, wait_for_shares,
    wait_until_published, write_rides,
};

/// No server listens on this port.
const REFUSES: &str = "redis://127.0.0.1:1";

#[tokio::test]
async fn two_streamers_lead_four_of_eight_partitions_each_and_one_that_is_left_leads_all() {
    let world = World::cut(8).await;
    let first = start_streamer(&world, &[]).await;
    wait_for_shares(&world, &[8]).await;
    write_rides(world.client(), 100).await;
    wait_until_published(&world).await;
    let mut second = start_streamer(&world, &[]).await;
    wait_for_shares(&world, &[4, 4]).await;
    write_rides(world.client(), 100).await;
    wait_until_published(&world).await;
    assert!(first.output().contains("batch published") && second.output().contains("batch published"));
    first.kill().await;
    wait_for_shares(&world, &[8]).await;
    write_rides(world.client(), 100).await;
    wait_until_published(&world).await;
    let third = start_streamer(&world, &[]).await;
    wait_for_shares(&world, &[4, 4]).await;
    let fourth = start_streamer(&world, &[]).await;
    wait_for_shares(&world, &[2, 3, 3]).await;
    // One that ends as it should leaves its partitions at once, too.
    third.stop().await;
    wait_for_shares(&world, &[4, 4]).await;
    write_rides(world.client(), 100).await;
    wait_until_published(&world).await;
    assert!(second.is_running());
    second.stop().await;
    fourth.stop().await;
    wait_for_shares(&world, &[]).await;
}

/// The servers of `bin/test` have unix sockets only, where no keepalive ends a session.
#[tokio::test]
async fn a_stopped_streamer_with_a_thousand_hints_behind_it_loses_its_partitions() {
    let world = World::cut(8).await;
    let mut stopped = start_streamer(&world, &[]).await;
    let sound = start_streamer(&world, &[]).await;
    wait_for_shares(&world, &[4, 4]).await;
    let listening = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                     AND application_name = 'streamer hints' AND query LIKE '%end_stuck_sessions%'";
    wait_until("both listen", async || world.number(listening).await == 2).await;
    stopped.signal(Signal::SIGSTOP);
    write_rides(world.client(), 100).await;
    for _ in 0..1_000 {
        pglog::hint(world.client()).await.unwrap();
    }
    let stuck = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                 AND application_name LIKE 'streamer%' AND wait_event = 'ClientWrite'";
    assert!(world.number(stuck).await > 0, "the socket of the stopped process is full");
    wait_for_shares(&world, &[8]).await;
    wait_until_published(&world).await;
    stopped.signal(Signal::SIGCONT);
    wait_for_shares(&world, &[4, 4]).await;
    write_rides(world.client(), 100).await;
    wait_until_published(&world).await;
    assert!(stopped.is_running());
    stopped.stop().await;
    sound.stop().await;
}

#[tokio::test]
async fn pinned_partitions_are_led_by_their_streamer_and_the_others_are_shared() {
    let world = World::cut(8).await;
    let shared = [start_streamer(&world, &[]).await, start_streamer(&world, &[]).await];
    wait_for_shares(&world, &[4, 4]).await;
    let pinned = start_streamer(&world, &["--partitions", "0,5"]).await;
    wait_for_shares(&world, &[2, 3, 3]).await;
    assert!(led(&world).await.contains(&vec![0, 5]));
    assert_eq!(member_count(&world).await, 2);
    write_rides(world.client(), 100).await;
    wait_until_published(&world).await;
    // A second one beside it waits for the same partitions.
    let mut beside = start_streamer(&world, &["--partitions", "5"]).await;
    beside.wait_for("standing by").await;
    pinned.kill().await;
    wait_until("the one that waited leads, and partition 0 is shared", async || {
        led(&world).await.contains(&vec![5]) && shares(&world).await == [1, 3, 4]
    })
    .await;
    beside.stop().await;
    wait_for_shares(&world, &[4, 4]).await;
    write_rides(world.client(), 100).await;
    wait_until_published(&world).await;
    for streamer in shared {
        streamer.stop().await;
    }
}

#[tokio::test]
async fn a_partition_that_the_log_lacks_keeps_a_streamer_down() {
    let world = World::cut(3).await;
    let output = Process::start(&world, "streamer", &["--partitions", "0,3"]).fail(2).await;
    assert!(output.contains("partition 3 is not one of them: give numbers from 0 to 2"), "{output}");
}

/// P2: while Redis is away, each partition is led, and its records get offsets.
#[tokio::test]
async fn without_redis_streamers_leave_the_membership_and_every_partition_is_led() {
    let mut redis = PrivateRedis::start(&[]).await;
    let url = std::env::var("DATABASE_URL").unwrap();
    let world = World::cut_on(&url, &redis.url(), 8).await;
    let streamers = [start_streamer(&world, &[]).await, start_streamer(&world, &[]).await];
    wait_for_shares(&world, &[4, 4]).await;
    write_rides(world.client(), 100).await;
    wait_until_published(&world).await;
    redis.kill().await;
    write_rides(world.client(), 100).await;
    wait_until("the records have offsets", async || is_all_cut(&world).await).await;
    wait_until("both have left", async || member_count(&world).await == 0).await;
    write_rides(world.client(), 100).await;
    wait_until("the records have offsets", async || is_all_cut(&world).await).await;
    wait_until("every partition is led", async || shares(&world).await.iter().sum::<i64>() == 8).await;
    redis.start_again().await;
    wait_for_shares(&world, &[4, 4]).await;
    assert_eq!(member_count(&world).await, 2);
    write_rides(world.client(), 100).await;
    // Nothing of before is in the new Redis, and no consumer has passed anything.
    wait_until_published(&world).await;
    for streamer in streamers {
        streamer.stop().await;
    }
}

#[tokio::test]
async fn a_streamer_that_reaches_no_redis_gives_all_partitions_to_one_that_does() {
    let world = World::cut(8).await;
    let mut cut_off = start_streamer(&world, &["--redis-url", REFUSES]).await;
    wait_for_shares(&world, &[8]).await;
    write_rides(world.client(), 100).await;
    wait_until("the records have offsets", async || is_all_cut(&world).await).await;
    assert_eq!(member_count(&world).await, 0);
    let mut sound = start_streamer(&world, &[]).await;
    sound.wait_for("partitions=0,1,2,3,4,5,6,7").await;
    cut_off.wait_for("standing by").await;
    wait_until_published(&world).await;
    assert_eq!((member_count(&world).await, shares(&world).await), (1, vec![8]));
    assert!(cut_off.is_running() && sound.is_running());
}

#[tokio::test]
async fn drain_ends_when_nothing_is_left_in_any_of_its_partitions() {
    let world = World::cut(8).await;
    write_rides(world.client(), 2_345).await;
    Process::start(&world, "streamer", &["--drain"]).succeed().await;
    wait_until_published(&world).await;
    // Pinned, it leaves the others alone.
    for partition in 0..8 {
        stage(world.client(), partition, 10).await;
    }
    Process::start(&world, "streamer", &["--drain", "--partitions", "2,7"]).succeed().await;
    let cut = "SELECT count(DISTINCT partition) FROM log_batches WHERE fresh_last_id > (
                   SELECT max(id) FROM staged_log_records WHERE object = 'ride')";
    assert_eq!(world.number(cut).await, 2);
    // Beside a leader it waits until the leader has published everything.
    let leader = start_streamer(&world, &[]).await;
    wait_for_shares(&world, &[8]).await;
    write_rides(world.client(), 100).await;
    Process::start(&world, "streamer", &["--drain"]).succeed().await;
    assert_eq!(crate::partitions_fixture::lens(&world).await, record_counts(&world).await);
    leader.stop().await;
}

#[tokio::test]
async fn streams_of_a_log_that_is_cut_have_its_id_in_their_names() {
    let world = World::cut(8).await;
    write_rides(world.client(), 100).await;
    world.drain_streamer(&mut world.streamer()).await;
    wait_until_published(&world).await;
    let log_id: String = world.client().query_one("SELECT log_id FROM log_identity", &[]).await.unwrap().get(0);
    assert!(keys(&world).await.iter().all(|key| key.contains(&log_id)));
}
