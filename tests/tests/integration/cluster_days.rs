//! Bad days of a Redis Cluster under 1,000 rides a second: nodes die, hang and hand over, a slot moves. Each time the sums are exact
//! at rest (P3), the streams of the other nodes go on, and those of the lost node are published again soon after the cluster takes
//! writes for them. Meanwhile consumers read Postgres.

use std::time::{Duration, Instant};

use stream::end::StreamEnd;
use tests::PrivateCluster;
use tokio::time::sleep;

use crate::cluster_fixture::{Day, Growth, Watch};

/// From the moment when the cluster takes writes for a stream to the first new entry. This bound and the next two are for a
/// machine that runs other tests as well, with unoptimized programs: they find a time-out or a back-off that is waited for again and
/// again. The times themselves are printed; a quiet machine needs a fraction of them (docs/PERFORMANCE.md).
const PUBLISHED_WITHIN: Duration = Duration::from_secs(9);

/// The longest time that a committed ride may wait to be folded, whatever happens in Redis.
const LAG_MAX: Duration = Duration::from_secs(6);

/// The longest time without a new entry in a stream that the fault must not touch. Its partition has 125 rides a second.
const GAP_MAX: Duration = Duration::from_secs(4);

/// How long the streams of the other nodes are watched at least.
const WATCH_MIN: Duration = Duration::from_secs(2);

/// How long a node without a replica is dead.
const OUTAGE: Duration = Duration::from_secs(20);

/// How long the keys of a slot are at their new node before the slot is.
const ASK_TIME: Duration = Duration::from_secs(1);

/// A fault on a day, and how long the streams that it touched were not published.
struct Fault<'a> {
    name: &'a str,
    touched: Vec<usize>,
    watch: Watch,
    began_at: Instant,
}

impl<'a> Fault<'a> {
    /// The load runs, and the streams of this node are about to be hit.
    async fn of_node(day: &Day, name: &'a str, node: usize) -> Self {
        let holders = day.holders().await;
        Self::of(day, name, (0..holders.len()).filter(|partition| holders[*partition] == node).collect()).await
    }

    async fn of(day: &Day, name: &'a str, touched: Vec<usize>) -> Self {
        assert!(!touched.is_empty(), "{name}: the fault hits a stream");
        let watch = Watch::start(day, &touched).await;
        Self { name, touched, watch, began_at: Instant::now() }
    }

    /// Waits until each touched stream is published again, asserts how long that took, and that nothing else was hit.
    async fn ends(self, day: &Day) {
        let Self { name, touched, watch, began_at } = self;
        let mut waits = Vec::new();
        for partition in touched {
            waits.push(published_again(day, partition));
        }
        for (partition, writable_at, published_at) in futures_util::future::join_all(waits).await {
            let wait = published_at.duration_since(writable_at);
            println!(
                "{name}: partition {partition} took writes after {:?}, published after {wait:?}",
                writable_at.duration_since(began_at)
            );
            assert!(wait <= PUBLISHED_WITHIN, "{name}: partition {partition} was published again after {wait:?}");
        }
        // The other streams are watched for a while even if that was quick.
        sleep(WATCH_MIN.saturating_sub(began_at.elapsed())).await;
        let took = began_at.elapsed();
        let seen = watch.end().await;
        println!("{name}: took {took:?}, lag at most {:?}", seen.lag_max);
        assert!(seen.lag_max <= LAG_MAX, "{name}: a consumer lagged {:?}", seen.lag_max);
        for Growth { partition, added_count, longest_gap } in seen.unhindered {
            println!("{name}: partition {partition} got {added_count} entries, its longest gap was {longest_gap:?}");
            assert!(longest_gap <= GAP_MAX, "{name}: partition {partition} of a sound node stood still");
            assert!(added_count as u128 > took.as_millis() / 100, "{name}: partition {partition} got too few entries");
        }
        day.rest().await;
    }
}

/// When a node takes writes for a partition, and when its stream grows there.
async fn published_again(day: &Day, partition: usize) -> (usize, Instant, Instant) {
    let key = &day.keys[partition];
    let node = day.cluster.writer_of(key).await;
    let writable_at = Instant::now();
    let mut wire = day.wire_to(node).await;
    let end = StreamEnd::read(&mut wire, key).await.unwrap().offset;
    while StreamEnd::read(&mut wire, key).await.unwrap().offset <= end {
        assert!(writable_at.elapsed() < Duration::from_secs(30), "partition {partition} is not published again");
        sleep(Duration::from_millis(10)).await;
    }
    (partition, writable_at, Instant::now())
}

/// SIGKILL of a master, whose replica takes over.
async fn a_master_dies(day: &mut Day, name: &str, partition: usize) {
    let node = day.holders().await[partition];
    let fault = Fault::of_node(day, name, node).await;
    day.cluster.kill(node).await;
    fault.ends(day).await;
    day.cluster.start_again(node).await;
    day.cluster.wait_whole().await;
}

/// SIGSTOP of a master: its connections stay open.
async fn a_master_hangs(day: &Day, partition: usize) {
    let node = day.holders().await[partition];
    let fault = Fault::of_node(day, "a master hangs", node).await;
    day.cluster.pause(node);
    fault.ends(day).await;
    day.cluster.resume(node);
    day.cluster.wait_whole().await;
    // It still believed to be a master when it woke up.
    day.rest().await;
}

/// `CLUSTER FAILOVER`.
async fn a_master_hands_over(day: &Day, partition: usize) {
    let node = day.holders().await[partition];
    let fault = Fault::of_node(day, "a master hands over", node).await;
    day.cluster.fail_over_to(day.cluster.partner_of(node)).await;
    fault.ends(day).await;
    day.cluster.wait_whole().await;
}

/// The slot of a stream goes to another master.
async fn a_slot_moves(day: &Day, partition: usize) {
    let holders = day.holders().await;
    let to = *holders.iter().find(|holder| **holder != holders[partition]).unwrap();
    let fault = Fault::of(day, "a slot moves", vec![partition]).await;
    let moving = day.cluster.begin_move(&day.keys[partition], to).await;
    day.cluster.move_keys(moving).await;
    sleep(ASK_TIME).await;
    day.cluster.end_move(moving).await;
    fault.ends(day).await;
    assert_eq!(day.holders().await[partition], to);
}

#[tokio::test]
async fn masters_that_die_hang_and_hand_over_touch_no_total_and_no_other_partition() {
    let mut day = Day::begin(PrivateCluster::start().await).await;
    a_master_dies(&mut day, "a master dies", 0).await;
    let holders = day.holders().await;
    let other = (0..holders.len()).find(|partition| holders[*partition] != holders[0]).unwrap();
    a_master_dies(&mut day, "another master dies", other).await;
    a_master_hangs(&day, 0).await;
    a_master_hands_over(&day, other).await;
    a_slot_moves(&day, 0).await;
    day.end().await;
}

#[tokio::test]
async fn partitions_of_a_dead_node_without_a_replica_are_read_from_postgres_until_it_is_back() {
    let mut day = Day::begin(PrivateCluster::start_masters().await).await;
    let node = day.holders().await[0];
    let fault = Fault::of_node(&day, "a node is dead", node).await;
    day.cluster.kill(node).await;
    sleep(OUTAGE).await;
    day.cluster.start_again(node).await;
    fault.ends(&day).await;
    day.end().await;
}
