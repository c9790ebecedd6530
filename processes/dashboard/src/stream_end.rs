//! Reads from Redis where each stream ends. A node that does not answer holds back no other: its streams are asked in the
//! background, until they answer again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::join_all;
use stream::Servers;
use stream::end::StreamEnd;
use stream::wire::Wire;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::debug;

use crate::keys::{Key, Keys};
use crate::sample::{PartitionStream, Server, StreamState};

/// How long a sample waits for a stream that did not answer before: long enough for an answer that is there already.
const AWAY_WAIT: Duration = Duration::from_millis(20);

/// The streams, asked for every sample, each on a connection of its own.
pub(crate) struct Streams {
    servers: Servers,
    keys: Keys,
    ends: Vec<End>,
    /// How long a sample waits for a stream that answered before.
    answer_wait: Duration,
}

/// What is known of one stream.
struct End {
    key: Key,
    wire: Option<Wire>,
    /// A question that a sample did not wait for.
    asking: Option<JoinHandle<Result<Answer>>>,
    is_away: bool,
}

struct Answer {
    wire: Wire,
    state: StreamState,
    took: Duration,
}

impl Streams {
    /// Connects with the first reading.
    pub fn new(servers: &Servers, keys: Keys, answer_wait: Duration) -> Self {
        Self { servers: servers.clone(), keys, ends: Vec::new(), answer_wait }
    }

    /// Where each stream ends, and the longest time that a server took to answer. The server is up if one answers.
    pub async fn read(&mut self) -> (Server, Vec<PartitionStream>) {
        let keys = self.keys.all();
        if keys.is_empty() {
            return (self.greet().await, Vec::new());
        }
        if !self.ends.iter().map(|end| &end.key).eq(&keys) {
            self.ends = keys.into_iter().map(End::new).collect();
        }
        let (servers, answer_wait) = (&self.servers, self.answer_wait);
        let answers = join_all(self.ends.iter_mut().map(|end| end.read(servers, answer_wait))).await;
        let took = answers.iter().flatten().map(|(_, took)| *took).max();
        let server =
            took.map_or(Server::DOWN, |took| Server { is_up: true, answer_ms: Some(took.as_secs_f64() * 1e3) });
        let streams = self.ends.iter().zip(answers).map(|(end, answer)| PartitionStream {
            partition: end.key.0.number(),
            state: answer.map(|(state, _)| state),
        });
        (server, streams.collect())
    }

    /// Whether Redis answers. Postgres has not told yet which streams there are.
    async fn greet(&self) -> Server {
        let began_at = Instant::now();
        match timeout(self.answer_wait, Wire::connect(self.servers.first(), Duration::ZERO)).await {
            Ok(Ok(_)) => Server { is_up: true, answer_ms: Some(began_at.elapsed().as_secs_f64() * 1e3) },
            _ => Server::DOWN,
        }
    }
}

impl End {
    fn new(key: Key) -> Self {
        Self { key, wire: None, asking: None, is_away: false }
    }

    /// `None`: the stream's node does not answer.
    async fn read(&mut self, servers: &Servers, answer_wait: Duration) -> Option<(StreamState, Duration)> {
        let wire = self.wire.take();
        let mut asking = self.asking.take().unwrap_or_else(|| {
            let (servers, key) = (servers.clone(), self.key.1.clone());
            tokio::spawn(async move { ask(&servers, &key, wire).await })
        });
        let wait = if self.is_away { AWAY_WAIT } else { answer_wait };
        self.is_away = true;
        match timeout(wait, &mut asking).await {
            Ok(Ok(Ok(answer))) => {
                self.is_away = false;
                self.wire = Some(answer.wire);
                return Some((answer.state, answer.took));
            }
            Ok(Ok(Err(error))) => debug!(key = self.key.1, error = format!("{error:#}"), "a stream cannot be asked"),
            Ok(Err(error)) => debug!(key = self.key.1, %error, "a stream cannot be asked"),
            // It ends by itself, because connections have time limits.
            Err(_) => self.asking = Some(asking),
        }
        None
    }
}

/// Asks on the connection of the reading before, or on a new one. After an error the next reading connects anew: a late reply to
/// this question would be taken for the reply to the next.
async fn ask(servers: &Servers, key: &str, wire: Option<Wire>) -> Result<Answer> {
    let mut wire = match wire {
        Some(wire) => wire,
        None => servers.wire(key, Duration::ZERO).await?,
    };
    let began_at = Instant::now();
    let end = StreamEnd::read(&mut wire, key).await.context("asking where the stream ends")?;
    let took = began_at.elapsed();
    let counts = end.counts.context("redis did not say how many entries the stream has")?;
    let state = StreamState { last_offset: end.offset, entry_count: counts.held, added_count: counts.added };
    Ok(Answer { wire, state, took })
}
