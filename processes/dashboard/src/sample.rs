//! What the page is told, a few times a second.

use std::time::SystemTime;

use serde::Serialize;

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
    /// Where the stream ends. `None`: Redis does not answer.
    pub stream: Option<StreamState>,
    /// The last one there was, however old.
    pub recount: Option<Recount>,
    /// `None`: not known yet.
    pub rides_per_s: Option<f64>,
    pub processes: Vec<Process>,
}

/// Whether all consumers have come to the same end, and to the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// All are at the head of the log, and have what the recount has.
    Converged,
    /// All are at the head, and the rides were not recounted there yet.
    AtHead,
    /// Somebody has records before him, or there are records without an offset.
    Behind,
    /// All are at the head, and somebody's state is not what the recount says.
    Differs,
    /// There is no consumer.
    Nobody,
    /// Postgres does not answer.
    Unknown,
}

/// Whether a server answers, and how quickly.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Server {
    pub is_up: bool,
    /// How long all questions of a sample took; `None` if they were not answered.
    pub answer_ms: Option<f64>,
}

/// The log as Postgres has it, all of one snapshot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct LogState {
    pub head: i64,
    /// Whether there are records without an offset.
    pub is_anything_staged: bool,
    /// Whether some streamer leads.
    pub is_led: bool,
    /// Whether there are more consumers than these.
    pub is_cut_off: bool,
    pub consumers: Vec<Consumer>,
}

/// A consumer, as its last commit left it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Consumer {
    pub name: String,
    pub last_offset: i64,
    pub lag_records: i64,
    /// How long the first record before it has waited.
    pub lag_ms: f64,
    /// `None`: it folds something else than the total distance.
    pub total: Option<Total>,
    pub duplicate_count: i64,
    pub healed_count: i64,
    pub rejected_count: i64,
    pub crash_count: i64,
    pub dead_letter_count: i64,
}

/// What has been folded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Total {
    pub ride_count: i64,
    #[serde(serialize_with = "as_text")]
    pub distance_mm: i64,
    /// 16 hexadecimal digits.
    pub digest: String,
}

/// The stream as Redis has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct StreamState {
    /// The offset up to which it was published; 0 if there is no stream.
    pub last_offset: i64,
    pub entry_count: usize,
}

/// SQL's own count and sum over the rides, in a snapshot of its own: nothing that consumers have made takes part in it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Recount {
    pub at_ms: u64,
    pub took_ms: f64,
    /// The head of the log in that snapshot.
    pub head: i64,
    /// Whether all records had an offset in that snapshot, so that consumers at that head must have the same.
    pub is_complete: bool,
    pub ride_count: i64,
    #[serde(serialize_with = "as_text")]
    pub distance_mm: i64,
}

/// A process, as it tells of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Process {
    pub name: String,
    /// `None`: it does not answer.
    pub is_ready: Option<bool>,
    /// What keeps it from being ready.
    pub waits_for: Vec<String>,
    /// Seconds since 1970.
    pub started_at_s: Option<f64>,
    /// Whether it leads, if it is a streamer.
    pub is_leader: Option<bool>,
    /// Entries that Redis refused because it had them, if it is a streamer.
    pub refused_count: Option<f64>,
    /// The name under which it consumes, if it is a consumer.
    pub consumer: Option<String>,
}

/// What the plots need of a sample. The page gets the points of the last minutes when it connects.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Point {
    pub at_ms: u64,
    pub head: Option<i64>,
    pub published: Option<i64>,
    /// By the last recount, if that is not old.
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

/// Beyond 2⁵³ a number would not be exact in a browser.
fn as_text<S: serde::Serializer>(number: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}
