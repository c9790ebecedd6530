//! Publishes all partitions that a streamer leads: what is sent to which node, and what the replies mean.
//!
//! Each node gets one pipeline at a time, with a page of each of its partitions that is behind. Partitions do not wait for each
//! other: a node that is away, hangs or refuses holds up its own partitions only, and they try again by themselves. An error is
//! returned when every partition fails.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use anyhow::{Error, Result, anyhow};
use bytes::Bytes;
use deadpool_postgres::ClientWrapper as Client;
use futures_util::future::join_all;
use monitor::counter;
use pglog::{Batch, Page, Partition};
use stream::codec::DecodeError;
use stream::end::StreamEnd;
use stream::resp::Elements;
use stream::{Servers, Stream};
use tracing::{error, warn};

use crate::appender::{Appender, PageStarts, Place};
use crate::fault::Fault;
use crate::foreign::check_set_aside;
use crate::hints::Hint;
use crate::nodes::{Answer, Asked, Flight, Node, Nodes};
use crate::publish::{Published, Sent, count_replies, trace_page};
use crate::question::{next_question, page_len};
use crate::refusal::{Refusal, Refused};

/// How long an idle leader waits for a hint before it looks at the table by itself. It bounds the delay of records whose
/// clients send no hint. A look costs one short question to Postgres.
pub(crate) const IDLE_WAIT: Duration = Duration::from_millis(100);

/// The result of [`Publisher::wait`].
pub(crate) enum Waited {
    /// An answer has come.
    Answered,
    /// Records may have been staged: a hint says so.
    Hinted,
    /// Records were not looked for while a node took long.
    LookAgain,
    /// Some partitions wait for their node, and nothing else is to be done.
    InVain,
    /// There was nothing to wait for.
    Nothing,
}

pub(crate) struct Publisher {
    stream: Stream,
    is_cut: bool,
    page_starts: PageStarts,
    pub nodes: Nodes,
    appenders: BTreeMap<Partition, Appender>,
    /// Whether other streamers lead partitions that this one could lead, too.
    may_get_others: bool,
    /// Pages that were published, and not returned yet.
    published: VecDeque<Published>,
    /// Why every partition fails.
    failure: Option<Error>,
}

impl Publisher {
    /// `is_cut` says whether the log has several partitions.
    pub fn new(servers: &Servers, stream: Stream, is_cut: bool, page_starts: PageStarts) -> Self {
        let (appenders, published) = (BTreeMap::new(), VecDeque::new());
        let nodes = Nodes::of(servers);
        Self { stream, is_cut, page_starts, nodes, appenders, may_get_others: false, published, failure: None }
    }

    /// Publishes these partitions from now on; for those that are to be given back, nothing more is sent. If it `may_get_others`, no
    /// refusal is final.
    pub fn lead(&mut self, led: &BTreeSet<Partition>, leaving: &BTreeSet<Partition>, may_get_others: bool) {
        self.may_get_others = may_get_others;
        self.appenders.retain(|partition, _| led.contains(partition));
        for partition in led {
            let appender = self.appenders.entry(*partition).or_insert_with(|| {
                Appender::new(*partition, self.stream.key(*partition), self.is_cut, self.page_starts.clone())
            });
            appender.is_leaving = leaving.contains(partition);
        }
    }

    /// Whether records are known that a stream does not have, and that can be sent; or something is under way.
    pub fn has_more(&self) -> bool {
        let can_send = |appender: &Appender| appender.is_behind_head() && appender.is_due(false);
        !self.published.is_empty() || self.nodes.is_busy() || self.appenders.values().any(can_send)
    }

    /// Whether a partition is on its way to the records that come next.
    pub fn is_searching(&self) -> bool {
        self.staying().any(Appender::is_searching)
    }

    /// The partitions in which to look for staged records: all but those whose stream is known to lack records and can get them.
    /// Records get their offsets also while their node is away: consumers read them from Postgres.
    pub fn to_cut(&self) -> Vec<Partition> {
        let waits = |appender: &&Appender| {
            let is_late = matches!(&appender.place, Place::At(node) if self.nodes.is_late(node));
            !appender.is_behind_head() || appender.is_in_trouble() || is_late
        };
        self.staying().filter(waits).map(|appender| appender.partition).collect()
    }

    /// Takes note of a batch that was just cut, and of its records if the same statement has read them.
    pub fn add_batch(&mut self, batch: Batch, page: Option<Page>) {
        if let Some(appender) = self.appenders.get_mut(&batch.partition) {
            appender.add_batch(batch, page);
        }
    }

    /// A page that was published; or why no partition can be.
    pub fn take_result(&mut self) -> Option<Result<Published>> {
        self.published.pop_front().map(Ok).or_else(|| self.failure.take().map(Err))
    }

    /// Sends to each node that is idle what is due there. `fault` is injected into one page.
    ///
    /// # Errors
    /// Postgres is away, or the records cannot be read.
    pub async fn send(&mut self, client: &Client, fault: Fault) -> Result<()> {
        // If everything fails, the caller pauses.
        let is_impatient = self.staying().all(Appender::is_in_trouble);
        let mut idle: BTreeSet<Node> = BTreeSet::new();
        for appender in self.appenders.values_mut().filter(|appender| appender.is_due(is_impatient)) {
            match &appender.place {
                Place::Lost if self.nodes.search(appender.partition, &appender.key) => appender.place = Place::Sought,
                Place::At(node) if self.nodes.is_idle(node) => drop(idle.insert(Node::clone(node))),
                Place::Lost | Place::Sought | Place::At(_) => {}
            }
        }
        for node in idle {
            let fault = if self.nodes.has_fault_under_way() { Fault::None } else { fault };
            let here = |appender: &&mut Appender| appender.is_at(&node) && appender.is_due(is_impatient);
            let due = self.appenders.values_mut().filter(here).collect();
            if let Some(question) = next_question(client, due, fault).await? {
                self.nodes.ask(&node, question);
            }
        }
        Ok(())
    }

    /// Handles every answer that has come.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn take_answers(&mut self, client: &Client) -> Result<()> {
        while let Some(answer) = self.nodes.next_now() {
            self.take(client, answer).await?;
        }
        Ok(())
    }

    /// Reads ahead, and waits until something is to be done. A hint is waited for only while there is a partition that can be
    /// published.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn wait(&mut self, client: &Client, hint: &Hint) -> Result<Waited> {
        if !self.nodes.is_busy() && !self.staying().any(Appender::is_in_trouble) {
            return Ok(Waited::Nothing);
        }
        let page_len = page_len(self.staying().filter(|appender| appender.is_behind_head()).count());
        join_all(self.appenders.values_mut().map(|appender| appender.read_ahead(client, page_len))).await;
        let is_free = |appender: &Appender| match &appender.place {
            Place::At(node) => !appender.is_in_trouble() && self.nodes.is_idle(node),
            Place::Lost | Place::Sought => false,
        };
        let is_any_free = self.staying().any(is_free);
        tokio::select! {
            answer = self.nodes.next() => {
                self.take(client, answer).await?;
                Ok(Waited::Answered)
            }
            () = hint.arrived(), if is_any_free => Ok(Waited::Hinted),
            () = tokio::time::sleep(IDLE_WAIT) => Ok(if is_any_free { Waited::InVain } else { Waited::LookAgain }),
        }
    }

    async fn take(&mut self, client: &Client, answer: Answer) -> Result<()> {
        match answer {
            Answer::Found(partition, found) => self.take_found(partition, found),
            Answer::Replied(node, asked, Err(error)) => {
                // The other streams of this node fail too, and the replies to none of them are known.
                let here = self.appenders.values().filter(|appender| appender.is_at(&node));
                let lost: BTreeSet<Partition> =
                    here.map(|appender| appender.partition).chain(asked.partitions()).collect();
                self.fail(&lost, error);
            }
            Answer::Replied(node, Asked::Ends(partitions), Ok(replies)) => {
                self.take_ends(client, &node, &partitions, &replies[0]).await?;
            }
            Answer::Replied(node, Asked::SetAside(partition), Ok(replies)) => {
                if let Some(appender) = self.appenders.get_mut(&partition) {
                    match check_set_aside(&appender.key, &replies[0]) {
                        Ok(()) => appender.was_set_aside(),
                        Err(refusal) => self.take_refusal(&node, partition, refusal),
                    }
                }
            }
            Answer::Replied(node, Asked::Pages(flights), Ok(replies)) => self.take_sent(&node, &flights, &replies),
        }
        Ok(())
    }

    /// A stream was found on a node. All streams are on a server that is no cluster.
    fn take_found(&mut self, partition: Partition, found: Result<Node>) {
        let is_cluster = self.nodes.is_cluster();
        let concerned = |appender: &Appender| match appender.place {
            Place::At(_) => false,
            Place::Lost | Place::Sought => !is_cluster || appender.partition == partition,
        };
        match found {
            Ok(node) => {
                for appender in self.appenders.values_mut().filter(|appender| concerned(appender)) {
                    appender.place = Place::At(Node::clone(&node));
                }
            }
            Err(error) => {
                let lost = self.appenders.values().filter(|appender| concerned(appender));
                let lost: BTreeSet<Partition> = lost.map(|appender| appender.partition).collect();
                self.fail(&lost, error);
            }
        }
    }

    async fn take_ends(
        &mut self,
        client: &Client,
        node: &Node,
        partitions: &[Partition],
        replies: &Bytes,
    ) -> Result<()> {
        let mut elements = Elements::of(replies);
        let mut ends = Vec::new();
        for partition in partitions {
            let end = StreamEnd::decode(elements.rest());
            elements.skip_value();
            match end {
                Ok(end) => ends.push((*partition, end)),
                Err(DecodeError::Refused(line)) => {
                    self.take_refusal(node, *partition, Refusal::of(&line, "reading the stream's end"));
                }
                Err(error) => {
                    let error = Error::new(error).context("reading the stream's end");
                    self.fail(&BTreeSet::from([*partition]), error);
                }
            }
        }
        let read: Vec<Partition> = ends.iter().map(|(partition, _)| *partition).collect();
        let heads = pglog::heads(client, &read).await?;
        for ((partition, end), head) in ends.into_iter().zip(heads) {
            if let Some(appender) = self.appenders.get_mut(&partition) {
                appender.take_end(client, end, head).await?;
            }
        }
        Ok(())
    }

    fn take_sent(&mut self, node: &Node, flights: &[Flight], replies: &[Bytes]) {
        let mut elements: Vec<Elements<'_>> = replies.iter().map(|replies| Elements::of(replies)).collect();
        for flight in flights {
            let counted: Result<Vec<_>, Refusal> =
                elements.iter_mut().map(|elements| count_replies(elements, flight.command_count)).collect();
            let Some(appender) = self.appenders.get_mut(&flight.partition) else { continue };
            match counted {
                Err(refusal) => self.take_refusal(node, flight.partition, refusal),
                Ok(counted) => {
                    let elapsed = flight.started_at.elapsed();
                    let sent = counted.into_iter().fold(Sent::default(), Sent::plus);
                    trace_page(&appender.key, &flight.page, elapsed);
                    let (first_offset, record_count) = (flight.page.first_offset(), flight.page.len());
                    // Sent again on purpose, a page is refused once.
                    let expected_refusals = flight.command_count * (replies.len() - 1);
                    appender.note_sent(first_offset, record_count, sent, expected_refusals);
                    self.published.push_back(Published {
                        partition: flight.partition,
                        fault: flight.fault,
                        first_offset,
                        record_count,
                        added_count: sent.added_count,
                        refused_count: sent.refused_count,
                        elapsed,
                    });
                }
            }
        }
    }

    /// An error reply about one stream.
    fn take_refusal(&mut self, node: &Node, partition: Partition, refusal: Refusal) {
        let error = match refusal {
            Refusal::Moved(error) => match self.appenders.get_mut(&partition) {
                // The new node is sought at once, unless the last one was wrong too.
                Some(appender) if !appender.was_moved => {
                    appender.forget();
                    appender.was_moved = true;
                    return;
                }
                _ => error,
            },
            Refusal::OfTheStream(error) => error,
            Refusal::OfTheServer(error) => {
                self.nodes.forget(node);
                self.appenders.values_mut().filter(|appender| appender.is_at(node)).for_each(Appender::forget);
                error
            }
        };
        self.fail(&BTreeSet::from([partition]), error);
    }

    /// Attempts on these partitions failed. They are repeated after a pause; or by the caller, if every partition fails.
    fn fail(&mut self, partitions: &BTreeSet<Partition>, error: Error) {
        let refused: Option<&Refused> = error.downcast_ref();
        let (is_refused, is_of_the_key) = (refused.is_some(), refused.is_some_and(Refused::is_of_the_key));
        for partition in partitions {
            if let Some(appender) = self.appenders.get_mut(partition) {
                appender.fail(is_refused);
            }
        }
        let (mut failing_count, mut refused_count, mut staying_count) = (0, 0, 0);
        for appender in self.staying() {
            staying_count += 1;
            failing_count += usize::from(appender.is_in_trouble());
            refused_count += usize::from(appender.is_refused());
        }
        let text = format!("{error:#}");
        if failing_count == staying_count && staying_count > 0 {
            // A refusal ends the process, so it must concern all partitions, and all that the process could lead. If it is about the
            // user, another streamer does better.
            let is_passing = is_refused && (refused_count < staying_count || is_of_the_key && self.may_get_others);
            self.failure = Some(if is_passing { anyhow!(text) } else { error });
            return;
        }
        counter!("rocket_rides_retries_total").increment(1);
        if is_refused {
            error!(partitions = %list(partitions), error = text, "publishing failed, trying again");
        } else {
            warn!(partitions = %list(partitions), error = text, "publishing failed, trying again");
        }
    }

    /// The partitions that are not to be given back.
    fn staying(&self) -> impl Iterator<Item = &Appender> {
        self.appenders.values().filter(|appender| !appender.is_leaving)
    }
}

/// Partitions as a person reads them: `0,3`.
pub(crate) fn list<'a>(partitions: impl IntoIterator<Item = &'a Partition>) -> String {
    let numbers: Vec<String> = partitions.into_iter().map(Partition::to_string).collect();
    numbers.join(",")
}
