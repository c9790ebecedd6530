//! A sample: the figures that the page receives, twice a second.

mod container;
mod log;
mod wallets;

use std::time::SystemTime;

use serde::Serialize;

pub(crate) use self::container::{Container, ContainerCounts, DestinationCounts, DestinationLine};
pub(crate) use self::log::{Consumer, LogState, PartitionState, Total};
pub(crate) use self::wallets::{Agreement, InPostgres, Model, Money, Told, Wallet, WalletEvent, Wallets};

/// Everything at one moment, as far as it is known.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub verdict: Verdict,
    pub postgres: Server,
    pub redis: Server,
    /// `None`: Postgres does not answer.
    pub log: Option<LogState>,
    /// The sum over the streams. `None`: one does not answer.
    pub stream: Option<StreamState>,
    /// The stream of each shown partition.
    pub streams: Vec<PartitionStream>,
    /// The latest recount, however old.
    pub recount: Option<Recount>,
    /// `None`: not known yet.
    pub rides_per_s: Option<f64>,
    pub processes: Vec<Process>,
    pub wallets: Wallets,
    pub container: Container,
}

/// Whether all consumers have the same state, and whether SQL computes that state too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// All consumers are at the head of the log, and their states equal the recount.
    Converged,
    /// All consumers are at the head, and there is no recount at this head yet.
    AtHead,
    /// A consumer has not folded all records, or there are records without an offset.
    Behind,
    /// All consumers are at the head, and the state of one does not equal the recount.
    Differs,
    /// There is no consumer that folds the total distance. `/state` has always called this "nobody".
    #[serde(rename = "nobody")]
    NoConsumer,
    /// Postgres does not answer.
    Unknown,
}

/// Whether a server answers, and how quickly.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Server {
    pub is_up: bool,
    /// How long the server took for all questions of a sample; `None` if it did not answer.
    pub answer_ms: Option<f64>,
}

/// The stream as Redis has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct StreamState {
    /// The offset up to which it was published; 0 if there is no stream.
    pub last_offset: i64,
    pub entry_count: i64,
    /// How many entries were added since the stream's key was created. A wipe sets it back; trimming does not.
    #[serde(skip)]
    pub added_count: i64,
}

/// The stream of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct PartitionStream {
    pub partition: i32,
    /// `None`: its node does not answer.
    pub state: Option<StreamState>,
}

impl StreamState {
    /// The sum over all streams; `None`: there are none, or one does not answer.
    pub fn sum(streams: &[PartitionStream]) -> Option<Self> {
        let states: Option<Vec<Self>> = streams.iter().map(|stream| stream.state).collect();
        states?.into_iter().reduce(|sum, state| Self {
            last_offset: sum.last_offset + state.last_offset,
            entry_count: sum.entry_count + state.entry_count,
            added_count: sum.added_count + state.added_count,
        })
    }
}

/// SQL's count and sum over the rides, in a snapshot of its own. It uses nothing that a consumer has written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Recount {
    pub at_ms: u64,
    pub took_ms: f64,
    /// The records that had an offset in that snapshot.
    pub head: i64,
    /// The head of each partition of the log in that snapshot, and the token of its batch.
    #[serde(skip)]
    pub heads: Vec<(i64, i64)>,
    /// Whether all records had an offset in that snapshot, so that consumers at that head must have the same.
    pub is_complete: bool,
    pub ride_count: i64,
    #[serde(serialize_with = "as_text")]
    pub distance_mm: i64,
}

/// A process, as its monitor describes it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Process {
    pub name: String,
    /// `None`: it does not answer.
    pub is_ready: Option<bool>,
    /// The parts that make no progress, and so keep it from being ready.
    pub waits_for: Vec<String>,
    /// Its process id.
    pub pid: Option<u32>,
    /// Seconds since 1970.
    pub started_at_s: Option<f64>,
    /// Whether it leads; `None` if it is no streamer.
    pub is_leader: Option<bool>,
    /// The partitions that it leads.
    pub leads: Vec<i32>,
    /// Entries that Redis refused because it had them; `None` if it is no streamer.
    pub refused_count: Option<f64>,
    /// Batches that it sent twice on purpose; `None` if it is no streamer.
    pub sent_twice_count: Option<f64>,
    /// The name of its checkpoint; `None` if it is no consumer.
    pub consumer: Option<String>,
    /// How often it has read a wallet; `None` if it serves none.
    pub wallet_reads: Option<WalletReads>,
    /// Whether it rebuilds the wallets' read model; `None` if it does not keep it.
    pub is_rebuilding: Option<bool>,
    /// What it counts; `None` if it is no container.
    #[serde(skip)]
    pub container: Option<ContainerCounts>,
}

/// The reads of wallets since a process started, by the server that they were read from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct WalletReads {
    pub redis: f64,
    pub postgres: f64,
}

/// The figures of a sample that the plots draw. The page gets the points of the last minutes when it connects.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Point {
    pub at_ms: u64,
    pub head: Option<i64>,
    pub published: Option<i64>,
    /// By the latest recount. `None`: Postgres does not answer, so the recount is old.
    pub sql_km: Option<f64>,
    pub rides_per_s: Option<f64>,
    /// Name, checkpoint, lag in records, total in kilometres.
    pub consumers: Vec<(String, i64, i64, Option<f64>)>,
}

impl Sample {
    pub fn point(&self) -> Point {
        let km = |distance_mm: i64| distance_mm as f64 / 1e6;
        let consumers = self.log.iter().flat_map(|log| &log.consumers).map(|consumer| {
            let total_km = consumer.total.as_ref().map(|total| km(total.distance_mm));
            (consumer.name.clone(), consumer.last_offset, consumer.lag_records, total_km)
        });
        Point {
            at_ms: self.at_ms,
            head: self.log.as_ref().map(|log| log.head),
            published: self.stream.map(|stream| stream.last_offset),
            sql_km: self.log.as_ref().and(self.recount.as_ref()).map(|recount| km(recount.distance_mm)),
            rides_per_s: self.rides_per_s,
            consumers: consumers.collect(),
        }
    }
}

impl Server {
    pub const DOWN: Self = Self { is_up: false, answer_ms: None };
}

/// Milliseconds since 1970, on this machine's clock.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// As text, because a browser rounds numbers above 2⁵³.
fn as_text<S: serde::Serializer>(number: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}
