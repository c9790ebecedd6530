//! The queue, and the task that empties it.

use std::time::Duration;

use common::backoff::Backoff;
use common::tasks::after_all_other_tasks;
use monitor::Pulse;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::destination::Destination;
use crate::halves::{Group, Outcomes, Responder};
use crate::refusal::Refusal;

/// The longest pause after a group that failed as a whole. Requests wait meanwhile, so it is short: a client that sends its
/// request again at once is refused a few times a second, and the destination is not flooded.
const RETRY_WAIT_MAX: Duration = Duration::from_millis(500);

/// The bounds of a queue.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests that may wait. Further requests are refused with [`Refusal::Overloaded`].
    pub queue_len_max: usize,
    /// Requests that are written by one transaction at most. The oldest come first.
    pub group_len_max: usize,
    /// How long the destination may take for one group, all its halves included.
    pub write_wait: Duration,
}

/// A request in the queue.
struct Waiting<D: Destination> {
    request: D::Request,
    responder: Responder<D>,
}

/// Hands requests to the writing task. Clones share the task. After the last clone is dropped, the task writes the requests
/// that still wait, and ends.
pub struct Queue<D: Destination> {
    waiting: mpsc::Sender<Waiting<D>>,
}

impl<D: Destination> Clone for Queue<D> {
    fn clone(&self) -> Self {
        Self { waiting: self.waiting.clone() }
    }
}

impl<D: Destination> Queue<D> {
    /// Starts the writing task. `pulse` beats with each group and rests while there is nothing to write.
    ///
    /// One group is in flight at a time. With two, both are smaller, and the destination loses more by that than it wins by
    /// not waiting for the disk in between. While the destination writes one group, the task sends the responses to the
    /// group before.
    pub fn start(destination: D, limits: Limits, pulse: Pulse) -> (Self, JoinHandle<()>) {
        let (waiting, receiver) = mpsc::channel(limits.queue_len_max);
        (Self { waiting }, tokio::spawn(write_groups(destination, receiver, limits, pulse)))
    }

    /// Writes a request. Returns when its rows are durable. If this future is dropped while the request waits, the request
    /// is not written; once a transaction has begun, it is.
    ///
    /// # Errors
    /// The [`Destination`]'s error for a [`Refusal`], or for its own failure.
    pub async fn write(&self, request: D::Request) -> Result<D::Response, D::Error> {
        let (responder, outcome) = oneshot::channel();
        self.waiting.try_send(Waiting { request, responder }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => D::error_of_refusal(Refusal::Overloaded),
            mpsc::error::TrySendError::Closed(_) => D::error_of_refusal(Refusal::Closed),
        })?;
        outcome.await.unwrap_or_else(|_| Err(D::error_of_refusal(Refusal::Lost)))
    }
}

async fn write_groups<D: Destination>(
    destination: D,
    mut waiting: mpsc::Receiver<Waiting<D>>,
    limits: Limits,
    pulse: Pulse,
) {
    let mut group = Group::with_capacity(limits.group_len_max);
    let mut outcomes = Vec::new();
    let mut backoff = Backoff::up_to(RETRY_WAIT_MAX);
    while next_group(&mut waiting, &mut group, limits.group_len_max, &mut outcomes, &pulse).await {
        let earlier = std::mem::take(&mut outcomes);
        // The write comes first. The connection's task, which is ready now, puts the statement on the wire before the clients'
        // tasks wake up and use the processor.
        let (is_taken, ()) = tokio::join!(group.write(&destination, limits.write_wait, &mut outcomes), async {
            after_all_other_tasks().await;
            send::<D>(earlier);
        });
        if is_taken {
            backoff.reset();
        } else {
            send::<D>(std::mem::take(&mut outcomes));
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }
}

/// Moves the requests that wait into the empty `group`. If there are none, sends `outcomes` and waits. Returns whether there
/// is a group; if not, there will never be another one.
async fn next_group<D: Destination>(
    waiting: &mut mpsc::Receiver<Waiting<D>>,
    group: &mut Group<D>,
    group_len_max: usize,
    outcomes: &mut Outcomes<D>,
    pulse: &Pulse,
) -> bool {
    // Requests that already lie in sockets would otherwise miss this group by microseconds.
    after_all_other_tasks().await;
    let mut next = waiting.try_recv().ok();
    loop {
        while let Some(Waiting { request, responder }) = next {
            // If the responder is closed, the client has left, or it got a 503 after too long in the queue and will retry.
            // Writing its request now would write it twice.
            if !responder.is_closed() {
                group.push(request, responder);
            }
            next = if group.len() < group_len_max { waiting.try_recv().ok() } else { None };
        }
        if group.len() > 0 {
            pulse.beat();
            return true;
        }
        pulse.rest();
        send::<D>(std::mem::take(outcomes));
        next = waiting.recv().await;
        if next.is_none() {
            return false;
        }
    }
}

fn send<D: Destination>(outcomes: Outcomes<D>) {
    for (responder, outcome) in outcomes {
        // An error means that the client has left. Its rows stay all the same.
        let _ = responder.send(outcome);
    }
}
