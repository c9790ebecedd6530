//! Where rides are booked: claims the request, drives it from phase to phase, and gives it back if it cannot go on.

use std::net::IpAddr;
use std::time::Duration;

use deadpool_postgres::{Client, Pool};
use idempotency::{Operation, PostgresStore, Runner};
use payments::Stripe;
use serde::{Deserialize, Serialize};
use traces::TraceParent;

use crate::journey::Journey;
use crate::phases::Trip;

/// How long a request has for all of its phases before somebody else may take it over.
const CLAIM_WAIT: Duration = Duration::from_secs(90);

/// How long a request may be sent again if it is not finished. Stripe remembers our key for 24 hours; after that it might
/// charge a second time, so then a human has to look.
const EXPIRATION: Duration = Duration::from_secs(23 * 3600);

/// Who books.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The row in `users`.
    pub id: i64,
    /// Whom the payment processor charges.
    pub stripe_customer_id: String,
}

/// What is booked.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// From where to where.
    pub journey: Journey,
    /// From where the request came, for the audit.
    pub origin_ip: IpAddr,
    /// The trace of this request. What an earlier or a later try stages is a part of that one's.
    pub traceparent: Option<TraceParent>,
    /// Fail before the charge, to show that this is survived.
    pub raise_error: bool,
}

/// What is stored of an order. It must not change from one try to the next.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Payload {
    pub user_id: i64,
    #[serde(flatten)]
    pub journey: Journey,
}

/// The answer: what the first request got gets everybody who sends it again, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The HTTP status: 201, or 402 if the charge was declined.
    pub status: u16,
    /// A JSON object.
    pub body: String,
    /// Whether it was stored before. Not stored itself.
    #[serde(skip)]
    pub is_replayed: bool,
}

/// Why a booking is not finished now. All of them leave the request to be sent again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is being worked on, or was another one.
    #[error(transparent)]
    Operation(#[from] idempotency::Error),
    /// Transactions were in each other's way, several times.
    #[error("conflict with a concurrent request")]
    Conflict,
    /// The processor is away, slow, or broken. Whether it has charged is not known, and does not matter.
    #[error("the payment processor: {0}")]
    Processor(payments::ChargeError),
    /// The client asked for it.
    #[error("error raised on request")]
    Raised,
    /// Postgres is away, or does not answer.
    #[error("no connection to postgres: {0}")]
    Unavailable(String),
    /// Something is there that cannot be.
    #[error("Bug! {0}")]
    Bug(String),
}

impl Error {
    /// The error with its causes, for the log.
    pub fn explain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Operation(error.into())
    }
}

/// Where to die on purpose, by SIGKILL: for tests and chaos.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DiePoint {
    /// The request is claimed, and nothing is done yet.
    Started,
    /// The ride is there.
    RideCreated,
    /// The processor has charged, and nobody here knows.
    Charged,
    /// The charge is known.
    ChargeCreated,
    /// All is done, and the client does not know.
    Finished,
}

/// Books rides. Clones share its connections.
#[derive(Clone)]
pub struct Desk {
    pool: Pool,
    runner: Runner<PostgresStore>,
    pub(crate) stripe: Stripe,
    claim_wait: Duration,
    die_at: Option<DiePoint>,
}

impl Desk {
    /// Takes connections from `pool` and charges by `stripe`.
    pub fn new(pool: Pool, stripe: Stripe) -> Self {
        Self {
            runner: Runner::new(PostgresStore::new(pool.clone())),
            pool,
            stripe,
            claim_wait: CLAIM_WAIT,
            die_at: None,
        }
    }

    /// The same, with claims that hold so long. All who work on the same requests should have the same.
    #[must_use]
    pub fn with_claim_wait(mut self, claim_wait: Duration) -> Self {
        self.claim_wait = claim_wait;
        self
    }

    /// The same, to die at this point of the first booking that reaches it.
    #[must_use]
    pub fn dying_at(mut self, point: Option<DiePoint>) -> Self {
        self.die_at = point;
        self
    }

    pub(crate) fn pass(&self, point: DiePoint) {
        if self.die_at == Some(point) {
            common::fault::die();
        }
    }

    /// The user with this e-mail address.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn user(&self, email: &str) -> Result<Option<User>, Error> {
        let client = self.client().await?;
        let statement = "-- booking::user\nSELECT id, stripe_customer_id FROM users WHERE email = $1";
        let row = client.query_opt(&client.prepare_cached(statement).await?, &[&email]).await?;
        Ok(row.map(|row| User { id: row.get(0), stripe_customer_id: row.get(1) }))
    }

    /// Books a ride, or goes on where an earlier request with this key has stopped, or answers what that one was answered.
    /// If the future is dropped, the request waits for its claim to run out: spawn it.
    ///
    /// # Errors
    /// See [`Error`]. Nothing is lost: send the same request again.
    pub async fn book(&self, user: &User, key: &str, order: &Order) -> Result<Reply, Error> {
        let payload = Payload { user_id: user.id, journey: order.journey };
        let payload = serde_json::to_vec(&payload).map_err(|error| Error::Bug(error.to_string()))?;
        self.book_as(user, key, payload, order).await
    }

    /// The same, with the payload by which the request is known.
    pub(crate) async fn book_as(
        &self,
        user: &User,
        key: &str,
        payload: Vec<u8>,
        order: &Order,
    ) -> Result<Reply, Error> {
        let request = Operation {
            expiration: Some(EXPIRATION),
            ..Operation::new(format!("{TARGET}{}", user.id), key, payload, self.claim_wait)
        };
        let trip = Trip { desk: self, user, order };
        // Once the claim has run out nothing can be changed any more; a server that never answers must not hold us longer.
        let outcome = tokio::time::timeout(self.claim_wait, self.runner.call_in_phases(&request, &trip)).await;
        let outcome = outcome.map_err(|_| Error::Unavailable("no answer in time".to_owned()))?;
        let outcome = outcome.map_err(|error| match error {
            Error::Operation(error) if error.is_conflict() => Error::Conflict,
            error => error,
        })?;
        if !outcome.is_replayed {
            self.pass(DiePoint::Finished);
        }
        let reply: Reply = serde_json::from_slice(&outcome.result).map_err(|error| Error::Bug(error.to_string()))?;
        Ok(Reply { is_replayed: outcome.is_replayed, ..reply })
    }

    pub(crate) async fn client(&self) -> Result<Client, Error> {
        connect::postgres::take(&self.pool).await.map_err(|error| Error::Unavailable(format!("{error:#}")))
    }
}

/// What bookings are tracked as, before the user's id.
pub(crate) const TARGET: &str = "[POST]/rides of user ";
