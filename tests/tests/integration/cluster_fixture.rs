//! A log of eight partitions on a Redis Cluster under load, and observers that measure what a fault does to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use stream::end::StreamEnd;
use stream::wire::Wire;
use tests::{PrivateCluster, Process, World, wait_until};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// The partitions of the log.
pub const PARTITION_COUNT: usize = 8;

/// The rides of one transaction, and the pause between two: 1,000 rides a second.
const RIDES_AT_ONCE: i64 = 20;
const PAUSE: Duration = Duration::from_millis(20);

/// How often the observers look.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The consumers.
const NAMES: [&str; 2] = ["c0", "c1"];

/// Records by partition.
pub type Counts = [i64; PARTITION_COUNT];

/// Processes at work on a cluster.
pub struct Day {
    /// The cluster.
    pub cluster: PrivateCluster,
    /// The database.
    pub world: World,
    /// The streams' keys, by partition.
    pub keys: Vec<String>,
    streamer: Process,
    consumers: Vec<Process>,
}

impl Day {
    /// Starts a streamer and two consumers, and waits until they have carried a first ride of every partition.
    pub async fn begin(cluster: PrivateCluster) -> Self {
        let url = std::env::var("DATABASE_URL").expect("bin/test sets DATABASE_URL");
        let world = World::cut_on(&url, &cluster.url(), PARTITION_COUNT as i32).await;
        let mut keys = Vec::new();
        for partition in 0..PARTITION_COUNT as i32 {
            let key = "SELECT stream_key($1, $2)";
            keys.push(world.client().query_one(key, &[&partition, &world.stream_name()]).await.unwrap().get(0));
        }
        let streamer = Process::start(&world, "streamer", &[]);
        let consumers = NAMES.iter().map(|name| Process::start(&world, "consumer", &[name])).collect();
        let day = Self { cluster, world, keys, streamer, consumers };
        let registered = async || day.world.number("SELECT count(*) FROM checkpoints").await == 16;
        wait_until("both consumers are registered for all partitions", registered).await;
        Traffic::start(&day).await.stop_after(Duration::from_millis(200)).await;
        day.rest().await;
        day
    }

    /// The index of the node that has each partition's stream.
    pub async fn holders(&self) -> Vec<usize> {
        let mut holders = Vec::new();
        for key in &self.keys {
            holders.push(self.cluster.writer_of(key).await);
        }
        holders
    }

    /// Waits until nothing is left to do, and asserts that the sums over all partitions are exact (P3): every record has an
    /// offset and is in its stream, and both consumers have folded all of them at the same offsets.
    pub async fn rest(&self) {
        let is_at_rest = "SELECT (NOT EXISTS (
                 SELECT FROM checkpoints AS c WHERE last_offset <> COALESCE((
                     SELECT max(first_offset + record_count - 1) FROM log_batches AS b WHERE b.partition = c.partition), 0))
                 AND (SELECT sum(last_offset) FROM checkpoints) = 2 * (SELECT count(*) FROM staged_log_records))::int::bigint";
        wait_until("both consumers have folded every record", async || self.world.number(is_at_rest).await == 1).await;
        let sums = "SELECT name || ' ' || sum(ride_count) || ' ' || sum(total_distance_mm) FROM consumer_states
                    GROUP BY name ORDER BY name";
        let rides = "SELECT count(*) || ' ' || sum(distance_mm) FROM rides";
        let rides: String = self.world.client().query_one(rides, &[]).await.unwrap().get(0);
        let rows = self.world.client().query(sums, &[]).await.unwrap();
        let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(found, NAMES.map(|name| format!("{name} {rides}")), "the sums over all partitions equal SQL's (P3)");
        let differing = "SELECT count(*) FROM consumer_states AS a JOIN consumer_states AS b USING (partition)
                         WHERE a.digest <> b.digest OR a.ride_count <> b.ride_count";
        assert_eq!(self.world.number(differing).await, 0, "both folded the same rides at the same offsets");
        for (partition, head) in self.heads().await.into_iter().enumerate() {
            let key = &self.keys[partition];
            wait_until("the stream ends at the head", async || {
                let Some(holder) = self.cluster.find_writer(key).await else { return false };
                let end = StreamEnd::read(&mut self.wire_to(holder).await, key).await;
                end.is_ok_and(|end| end.offset == head)
            })
            .await;
        }
    }

    async fn heads(&self) -> Counts {
        let heads =
            "SELECT partition, max(first_offset + record_count - 1)::bigint FROM log_batches GROUP BY partition";
        let mut counts = Counts::default();
        for row in self.world.client().query(heads, &[]).await.unwrap() {
            counts[row.get::<_, i32>(0) as usize] = row.get(1);
        }
        counts
    }

    /// A connection to one node, and to no other.
    pub async fn wire_to(&self, node: usize) -> Wire {
        let client = stream::redis::client(self.cluster.url_of(node)).unwrap();
        Wire::connect(&client, Duration::ZERO).await.unwrap()
    }

    /// Lets the processes finish, as SIGTERM does.
    pub async fn end(mut self) {
        assert!(self.streamer.is_running(), "the streamer ended:\n{}", self.streamer.output());
        self.streamer.stop().await;
        for consumer in self.consumers {
            consumer.stop().await;
        }
    }
}

/// When how many records were committed.
#[derive(Default)]
struct History(Mutex<Vec<(Instant, Counts)>>);

impl History {
    fn newest(&self) -> Counts {
        self.0.lock().unwrap().last().unwrap().1
    }

    /// How long ago the first record was committed that a reader of a partition up to `offset` lacks; zero if it lacks none.
    fn lag(&self, partition: usize, offset: i64, now: Instant) -> Duration {
        let history = self.0.lock().unwrap();
        let first = history.partition_point(|(_, counts)| counts[partition] <= offset);
        history.get(first).map_or(Duration::ZERO, |(at, _)| now.duration_since(*at))
    }
}

/// A thousand rides a second, staged by key.
pub struct Traffic {
    history: Arc<History>,
    stop: Arc<AtomicBool>,
    writing: JoinHandle<()>,
}

impl Traffic {
    /// Starts to write. At rest, the heads are the numbers of all records.
    pub async fn start(day: &Day) -> Self {
        let (history, stop) = (Arc::new(History::default()), Arc::new(AtomicBool::new(false)));
        let heads = day.heads().await;
        history.0.lock().unwrap().push((Instant::now(), heads));
        let (client, written, stopped) = (day.world.connect().await, Arc::clone(&history), Arc::clone(&stop));
        let writing = tokio::spawn(async move {
            let mut ticks = interval(PAUSE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            while !stopped.load(Ordering::Relaxed) {
                ticks.tick().await;
                let statement = "WITH written AS (
                         INSERT INTO rides (distance_mm) SELECT 1 + (random() * 1000000)::bigint FROM generate_series(1, $1::bigint)
                         RETURNING id, distance_mm), staged AS (
                         INSERT INTO staged_log_records (partition, object, action, data)
                         SELECT partition_of(id::text), 'ride', 'create',
                                format('{\"id\":%s,\"distance_mm\":%s}', id, distance_mm)::json FROM written
                         RETURNING partition)
                     SELECT partition, count(*) FROM staged GROUP BY partition";
                let mut counts = written.newest();
                for row in client.query(statement, &[&RIDES_AT_ONCE]).await.unwrap() {
                    counts[row.get::<_, i32>(0) as usize] += row.get::<_, i64>(1);
                }
                written.0.lock().unwrap().push((Instant::now(), counts));
            }
        });
        Self { history, stop, writing }
    }

    /// Writes for so long, and stops.
    pub async fn stop_after(self, time: Duration) {
        sleep(time).await;
        self.stop().await;
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.writing.await.unwrap();
    }
}

/// Observers of a day under load, from a moment before a fault on.
pub struct Watch {
    traffic: Traffic,
    stop: Arc<AtomicBool>,
    lag: JoinHandle<Duration>,
    growth: JoinHandle<Vec<Growth>>,
}

/// What happened to a stream during a watch.
pub struct Growth {
    /// Whose stream it is.
    pub partition: usize,
    /// The entries that came.
    pub added_count: i64,
    /// The longest time without a new entry.
    pub longest_gap: Duration,
}

/// What was seen until the end.
pub struct Seen {
    /// The highest lag of any consumer in any partition.
    pub lag_max: Duration,
    /// The streams that the fault must not touch.
    pub unhindered: Vec<Growth>,
}

impl Watch {
    /// Starts the load and the observers. The streams of `touched` are left out: a fault hits them.
    pub async fn start(day: &Day, touched: &[usize]) -> Self {
        let holders = day.holders().await;
        let traffic = Traffic::start(day).await;
        let stop = Arc::new(AtomicBool::new(false));
        let mut wires = Vec::new();
        for partition in (0..PARTITION_COUNT).filter(|partition| !touched.contains(partition)) {
            wires.push((partition, day.keys[partition].clone(), day.wire_to(holders[partition]).await));
        }
        // Streams that were at rest need a moment until they grow steadily.
        sleep(Duration::from_secs(1)).await;
        let lag = tokio::spawn(watch_lag(day.world.connect().await, Arc::clone(&traffic.history), Arc::clone(&stop)));
        let growth = tokio::spawn(watch_growth(wires, Arc::clone(&stop)));
        Self { traffic, stop, lag, growth }
    }

    /// Stops the load and the observers.
    pub async fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let seen = Seen { lag_max: self.lag.await.unwrap(), unhindered: self.growth.await.unwrap() };
        self.traffic.stop().await;
        seen
    }
}

async fn watch_lag(
    client: impl std::ops::Deref<Target = tokio_postgres::Client> + Send,
    history: Arc<History>,
    stop: Arc<AtomicBool>,
) -> Duration {
    let mut lag_max = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let asked_at = Instant::now();
        for row in client.query("SELECT partition, last_offset FROM checkpoints", &[]).await.unwrap() {
            let partition = row.get::<_, i32>(0) as usize;
            lag_max = lag_max.max(history.lag(partition, row.get(1), asked_at));
        }
        sleep(LOOK_INTERVAL).await;
    }
    lag_max
}

async fn watch_growth(mut wires: Vec<(usize, String, Wire)>, stop: Arc<AtomicBool>) -> Vec<Growth> {
    let mut seen: Vec<(i64, i64, Instant, Duration)> = Vec::new();
    for (_, key, wire) in &mut wires {
        let offset = StreamEnd::read(wire, key).await.unwrap().offset;
        seen.push((offset, offset, Instant::now(), Duration::ZERO));
    }
    while !stop.load(Ordering::Relaxed) {
        for ((partition, key, wire), (_, last, grown_at, gap)) in wires.iter_mut().zip(&mut seen) {
            let end = StreamEnd::read(wire, key).await;
            let offset =
                end.unwrap_or_else(|error| panic!("the node of partition {partition} lives: {error:#}")).offset;
            *gap = (*gap).max(grown_at.elapsed());
            if offset > *last {
                (*last, *grown_at) = (offset, Instant::now());
            }
        }
        sleep(LOOK_INTERVAL).await;
    }
    let growth = wires.iter().zip(&seen).map(|((partition, ..), (first, last, _, gap))| Growth {
        partition: *partition,
        added_count: last - first,
        longest_gap: *gap,
    });
    growth.collect()
}
