//! The nodes of Redis that have streams of this streamer, with one connection each. A plain server is the only node.
//!
//! A node is asked one thing at a time: a whole pipeline, in a task of its own. So a node that hangs holds up neither the cutting
//! of batches nor any other node.

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use common::fault::die;
use futures_util::future::select_ok;
use pglog::{Page, Partition};
use redis::Client;
use stream::Servers;
use stream::resp::Commands;
use stream::wire::Wire;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::fault::Fault;

/// A node that has not answered for so long is late: the records of its partitions get their offsets meanwhile.
const LATE_AFTER: Duration = Duration::from_millis(100);

/// How long a streamer that leads nothing waits for a sign of Redis.
const SIGN_WAIT: Duration = Duration::from_millis(250);

/// The address of a node.
pub(crate) type Node = Arc<str>;

/// A question to a node.
pub(crate) struct Question {
    pub commands: Commands,
    pub asked: Asked,
}

/// The meaning of a question, and what is needed to understand the reply.
pub(crate) enum Asked {
    /// Where these streams end.
    Ends(Vec<Partition>),
    /// To set the stream of this partition aside.
    SetAside(Partition),
    /// To append these pages.
    Pages(Vec<Flight>),
}

impl Asked {
    /// The partitions that it concerns.
    pub fn partitions(&self) -> Vec<Partition> {
        match self {
            Self::Ends(partitions) => partitions.clone(),
            Self::SetAside(partition) => vec![*partition],
            Self::Pages(flights) => flights.iter().map(|flight| flight.partition).collect(),
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Pages(flights) => flights.first().map_or(Fault::None, |flight| flight.fault),
            Self::Ends(_) | Self::SetAside(_) => Fault::None,
        }
    }
}

/// A page on its way.
pub(crate) struct Flight {
    pub partition: Partition,
    pub page: Page,
    /// The number of commands that append it.
    pub command_count: usize,
    pub fault: Fault,
    pub started_at: Instant,
}

/// The result of a search or of a question.
pub(crate) enum Answer {
    /// The node that has the stream of a partition.
    Found(Partition, Result<Node>),
    /// The replies of a node. There are several if the question was sent several times.
    Replied(Node, Asked, Result<Vec<Bytes>>),
}

/// The end of a task.
enum Ended {
    Search(Partition, Result<(Box<Client>, Wire)>),
    Talk(Node, Result<(Wire, Vec<Bytes>)>),
}

#[derive(Default)]
struct Connection {
    /// `None` while a question is under way.
    wire: Option<Wire>,
    asked: Option<(Asked, Instant)>,
}

pub(crate) struct Nodes {
    servers: Servers,
    connections: HashMap<Node, Connection>,
    /// Dropped with the nodes: a question of a streamer that is gone is not asked.
    tasks: JoinSet<Ended>,
    search_count: usize,
    answered_at: Option<Instant>,
}

impl Nodes {
    /// It connects when first used.
    pub fn of(servers: &Servers) -> Self {
        Self {
            servers: servers.clone(),
            connections: HashMap::new(),
            tasks: JoinSet::new(),
            search_count: 0,
            answered_at: None,
        }
    }

    /// Whether this is a cluster, as far as known.
    pub fn is_cluster(&self) -> bool {
        self.servers.is_cluster()
    }

    /// Whether any node has answered within this time.
    pub fn has_answered_within(&self, time: Duration) -> bool {
        self.answered_at.is_some_and(|at| at.elapsed() < time)
    }

    /// Whether a node that has one of these keys answers now. In a cluster this means that not all nodes are away.
    pub async fn gives_a_sign(&mut self, keys: impl Iterator<Item = String>) -> bool {
        let servers = &self.servers;
        let searches = keys.map(|key| Box::pin(async move { servers.node_of(&key).await }));
        let has_answered = timeout(SIGN_WAIT, select_ok(searches)).await.is_ok_and(|found| found.is_ok());
        if has_answered {
            self.answered_at = Some(Instant::now());
        }
        has_answered
    }

    /// Searches the node that has a stream. Returns `false` if that has to wait: a server alone is searched once at a time.
    pub fn search(&mut self, partition: Partition, key: &str) -> bool {
        if self.search_count > 0 && !self.is_cluster() {
            return false;
        }
        self.search_count += 1;
        let (servers, key) = (self.servers.clone(), key.to_owned());
        self.tasks.spawn(async move {
            let found = servers.find(&key, Duration::ZERO).await;
            Ended::Search(partition, found.map(|(client, wire)| (Box::new(client), wire)))
        });
        true
    }

    /// Whether a node can be asked.
    pub fn is_idle(&self, node: &Node) -> bool {
        self.connections.get(node).is_some_and(|connection| connection.wire.is_some())
    }

    /// Whether a node takes long.
    pub fn is_late(&self, node: &Node) -> bool {
        let asked = self.connections.get(node).and_then(|connection| connection.asked.as_ref());
        asked.is_some_and(|(_, at)| at.elapsed() >= LATE_AFTER)
    }

    /// Whether anything is under way.
    pub fn is_busy(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// Whether a question about this partition is under way.
    pub fn is_asked_about(&self, partition: Partition) -> bool {
        let mut asked = self.connections.values().filter_map(|connection| connection.asked.as_ref());
        asked.any(|(asked, _)| asked.partitions().contains(&partition))
    }

    /// Whether a page with a fault is under way.
    pub fn has_fault_under_way(&self) -> bool {
        let mut asked = self.connections.values().filter_map(|connection| connection.asked.as_ref());
        asked.any(|(asked, _)| asked.fault() != Fault::None)
    }

    /// Asks a node that is idle.
    pub fn ask(&mut self, node: &Node, Question { commands, asked }: Question) {
        let connection = self.connections.entry(Arc::clone(node)).or_default();
        let wire = connection.wire.take().expect("the node is idle");
        let fault = asked.fault();
        connection.asked = Some((asked, Instant::now()));
        let node = Arc::clone(node);
        self.tasks.spawn(async move { Ended::Talk(node, talk(wire, &commands, fault).await) });
    }

    /// The next answer that has come already.
    pub fn next_now(&mut self) -> Option<Answer> {
        let ended = self.tasks.try_join_next()?;
        Some(self.finish(ended.unwrap_or_else(|error| resume_unwind(error.into_panic()))))
    }

    /// Waits for the next answer. Nothing may be under way; then it waits for ever.
    pub async fn next(&mut self) -> Answer {
        match self.tasks.join_next().await {
            Some(ended) => self.finish(ended.unwrap_or_else(|error| resume_unwind(error.into_panic()))),
            None => std::future::pending().await,
        }
    }

    fn finish(&mut self, ended: Ended) -> Answer {
        match ended {
            Ended::Search(partition, found) => {
                self.search_count -= 1;
                Answer::Found(partition, found.map(|(client, wire)| self.connected(&client, wire)))
            }
            Ended::Talk(node, replied) => {
                let mut connection = self.connections.remove(&node).expect("it was asked");
                let (asked, _) = connection.asked.take().expect("it was asked");
                let replies = replied.map(|(wire, replies)| {
                    self.answered_at = Some(Instant::now());
                    connection.wire = Some(wire);
                    self.connections.insert(Arc::clone(&node), connection);
                    replies
                });
                Answer::Replied(node, asked, replies)
            }
        }
    }

    /// Keeps the connection to a node, unless there is one already.
    fn connected(&mut self, client: &Client, wire: Wire) -> Node {
        self.answered_at = Some(Instant::now());
        let node = Node::from(client.get_connection_info().addr().to_string());
        self.connections.entry(Arc::clone(&node)).or_insert_with(|| Connection { wire: Some(wire), asked: None });
        node
    }

    /// Closes the connection to a node that is idle.
    pub fn forget(&mut self, node: &Node) {
        self.connections.remove(node);
    }
}

/// Sends the commands, reads the replies, and injects the fault. The connection is given up after an error: the replies may
/// still come.
async fn talk(mut wire: Wire, commands: &Commands, fault: Fault) -> Result<(Wire, Vec<Bytes>)> {
    let mut replies = Vec::new();
    for _ in 0..if fault == Fault::ResendBatch { 2 } else { 1 } {
        wire.send(commands).await?;
        replies.push(wire.read(commands.count()).await?);
    }
    if matches!(fault, Fault::DieMidPipeline | Fault::DieAfterPublish) {
        die();
    }
    Ok((wire, replies))
}
