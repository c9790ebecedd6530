//! Logs of several partitions.

use std::collections::BTreeMap;

use clap::Parser;
use consumer::DistanceFold;
use pglog::{Cut, Cutter, Partition, PartitionCount, Partitions, Session};
use stream::Stream;
use streamer::Streamer;

use crate::{Process, World, wait_until};

/// Starts a streamer that leads these partitions, with further arguments.
pub fn start_streamer(world: &World, partitions: &[Partition], args: &[&str]) -> Process {
    let partitions = Partitions::Only(partitions.to_vec()).to_string();
    Process::start(world, "streamer", &[&["--partitions", &partitions], args].concat())
}

/// Cuts everything that is staged in a partition into batches, and publishes nothing: as a streamer does that does not reach
/// Redis.
pub async fn unpublished(world: &World, partition: Partition) {
    let mut cutter = Cutter::new(partition);
    while !matches!(cutter.cut(world.client(), rand::random(), 1000).await.unwrap(), Cut::Nothing) {}
}

impl World {
    /// A world with a log of so many partitions on the shared Postgres and a private Redis.
    pub async fn with_redis_cut(redis_url: &str, partition_count: i32) -> Self {
        let maintenance_url = std::env::var("DATABASE_URL").expect("bin/test sets it");
        Self::cut_on(&maintenance_url, redis_url, partition_count).await
    }

    /// The partitions of its log.
    pub async fn partitions(&self) -> Vec<Partition> {
        let count = self.number("SELECT log_partitions()::bigint").await;
        PartitionCount::new(count as i32).unwrap().partitions().collect()
    }

    /// The key of a partition's stream.
    pub async fn stream_key(&self, partition: Partition) -> String {
        let identity = pglog::identity(self.client()).await.unwrap();
        Stream { name: self.stream_name().to_owned(), log_id: identity.log_id }.key(partition)
    }

    /// Publishes everything that is staged in these partitions.
    pub async fn publish(&self, partitions: &[Partition]) {
        for partition in partitions {
            let partition = ["--partitions".to_owned(), partition.to_string()];
            let args = ["streamer".to_owned()].into_iter().chain(self.flags("streamer")).chain(partition);
            self.drain_streamer(&mut Streamer::new(&streamer::Config::parse_from(args))).await;
        }
    }

    /// Whether every record that is staged has an offset, and the consumer has passed all of them, in all partitions.
    pub async fn has_folded_all(&self, name: &str) -> bool {
        let partitions = self.partitions().await;
        for partition in &partitions {
            if pglog::is_anything_staged(self.client(), *partition).await.unwrap() {
                return false;
            }
        }
        let heads = pglog::heads(self.client(), &partitions).await.unwrap();
        let checkpoints = self.checkpoints(name).await;
        partitions.iter().zip(heads).all(|(partition, head)| checkpoints.get(partition) == Some(&head))
    }

    /// The checkpoints of a consumer.
    pub async fn checkpoints(&self, name: &str) -> BTreeMap<Partition, i64> {
        let sql = "SELECT partition, last_offset FROM checkpoints WHERE name = $1";
        let rows = Session::query(self.client(), sql, &[&name]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// The sum of a consumer's states over all partitions.
    pub async fn total(&self, name: &str) -> DistanceFold {
        let sql = "SELECT total_distance_mm, ride_count, digest FROM consumer_states WHERE name = $1";
        let mut total = DistanceFold::default();
        for row in Session::query(self.client(), sql, &[&name]).await.unwrap() {
            total.total_distance_mm += row.get::<_, i64>(0);
            total.ride_count += row.get::<_, i64>(1);
            total.digest = total.digest.wrapping_add(row.get(2));
        }
        total
    }

    /// Waits until each of these consumers has folded every record, and asserts that all of them have SQL's sum, to the millimetre,
    /// of rides at the same places (P3).
    ///
    /// # Panics
    /// A record was lost, folded twice, or folded at another place.
    pub async fn converge(&self, names: &[&str]) {
        for name in names {
            wait_until(&format!("{name} has folded all partitions"), async || self.has_folded_all(name).await).await;
        }
        let (ride_count, total_distance_mm) = self.sql_totals().await;
        let digest = self.total(names[0]).await.digest;
        for name in names {
            assert_eq!(self.total(name).await, DistanceFold { total_distance_mm, ride_count, digest }, "{name}");
        }
    }
}
