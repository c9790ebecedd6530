//! Writing one group: all of it in one transaction, or, if a request is bad, in halves.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use crate::destination::Destination;

/// The response to a request, or the error that stands for it.
pub(crate) type Outcome<D> = Result<<D as Destination>::Response, <D as Destination>::Error>;

/// Sends an outcome to the client that waits for it.
pub(crate) type Responder<D> = oneshot::Sender<Outcome<D>>;

/// Outcomes that are known and not sent yet.
pub(crate) type Outcomes<D> = Vec<(Responder<D>, Outcome<D>)>;

/// Requests that are written together. The responder of each request has the same index.
pub(crate) struct Group<D: Destination> {
    requests: Vec<D::Request>,
    responders: Vec<Responder<D>>,
}

impl<D: Destination> Group<D> {
    pub fn with_capacity(len: usize) -> Self {
        Self { requests: Vec::with_capacity(len), responders: Vec::with_capacity(len) }
    }

    pub fn push(&mut self, request: D::Request, responder: Responder<D>) {
        self.requests.push(request);
        self.responders.push(responder);
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Writes the group and empties it. Adds one outcome per request to `outcomes`. Returns whether the destination took the
    /// group; it may have refused single requests.
    ///
    /// All other requests wait meanwhile, so everything after `connect` has one deadline. A second writing task beside a
    /// stuck one would not help: a lock, the disk or the network that stops one statement stops the next one too, and each
    /// task would hold another group whose fate is unknown.
    pub async fn write(&mut self, destination: &D, wait: Duration, outcomes: &mut Outcomes<D>) -> bool {
        let error = match destination.connect().await {
            Ok(connection) => {
                let deadline = Instant::now() + wait;
                match timeout_at(deadline, self.write_by_halves(destination, &connection, outcomes)).await {
                    Ok(written) => written.err(),
                    Err(_) => Some(destination.abandon(connection)),
                }
            }
            Err(error) => Some(error),
        };
        if let Some(error) = &error {
            outcomes.extend(self.responders.drain(..).map(|responder| (responder, Err(error.clone()))));
        }
        self.requests.clear();
        error.is_none()
    }

    /// Writes as many requests as possible, the first ones first. After an error the requests that still have a responder
    /// have no outcome yet.
    ///
    /// A transaction fails as a whole, and nothing of it is written. If one request may be the cause, half as many are tried
    /// next, down to the request that fails alone. After each success twice as many are tried. So one bad request costs a few
    /// transactions instead of one per neighbour, and many bad requests cost hardly more than one transaction each.
    async fn write_by_halves(
        &mut self,
        destination: &D,
        connection: &D::Connection,
        outcomes: &mut Outcomes<D>,
    ) -> Result<(), D::Error> {
        let mut left = self.requests.as_slice();
        let mut len = left.len();
        while !left.is_empty() {
            let (now, later) = left.split_at(len);
            let next_len = match destination.write(connection, now).await {
                Ok(responses) => {
                    assert_eq!(responses.len(), len, "each request has one response");
                    outcomes.extend(self.responders.drain(..len).zip(responses.into_iter().map(Ok)));
                    2 * len
                }
                Err(failure) if !destination.concerns_one_request(&failure) => {
                    return Err(destination.error_of(failure));
                }
                Err(failure) if len > 1 => {
                    let error = format!("{failure:#?}");
                    warn!(error, request_count = len, "writing half as many requests at a time");
                    len /= 2;
                    continue;
                }
                Err(failure) => {
                    let error = destination.error_of(failure);
                    outcomes.extend(self.responders.drain(..1).map(|responder| (responder, Err(error.clone()))));
                    1
                }
            };
            left = later;
            len = left.len().min(next_len);
        }
        Ok(())
    }
}
