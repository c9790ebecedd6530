//! The desk: the connections and the payment processor that bookings use.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Client, Pool};
use idempotency::{PostgresStore, Runner};
use payments::Stripe;
use pglog::Session;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::breaker::Breaker;
use crate::error::Error;
use crate::order::User;

/// How long a request may take for all of its phases before another process may take it over.
const CLAIM_WAIT: Duration = Duration::from_secs(90);

/// The most bookings that one process has in progress. Each may hold a socket while the processor is slow. 256 bookings of
/// 300 ms are 850 in a second.
pub const PLACE_COUNT: usize = 256;

/// A point at which the process kills itself with SIGKILL, for tests and chaos.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DiePoint {
    /// The request is claimed, and nothing is done yet.
    Started,
    /// The ride is written.
    RideCreated,
    /// The processor has charged, and this is not recorded yet.
    Charged,
    /// The charge is recorded.
    ChargeCreated,
    /// The booking is finished, and the client has no response yet.
    Finished,
}

/// Books rides. Clones share its connections.
#[derive(Clone)]
pub struct Desk {
    pool: Pool,
    pub(crate) runner: Runner<PostgresStore>,
    pub(crate) stripe: Stripe,
    pub(crate) claim_wait: Duration,
    pub(crate) breaker: Arc<Breaker>,
    places: Arc<Semaphore>,
    die_at: Option<DiePoint>,
}

impl Desk {
    /// Takes connections from `pool`, and charges by `stripe`.
    pub fn new(pool: Pool, stripe: Stripe) -> Self {
        Self {
            runner: Runner::new(PostgresStore::new(pool.clone())),
            pool,
            stripe,
            claim_wait: CLAIM_WAIT,
            breaker: Arc::default(),
            places: Arc::new(Semaphore::new(PLACE_COUNT)),
            die_at: None,
        }
    }

    /// The same desk, with claims that hold for this long. All processes that work on the same requests should have the same
    /// value.
    #[must_use]
    pub fn with_claim_wait(mut self, claim_wait: Duration) -> Self {
        self.claim_wait = claim_wait;
        self
    }

    /// The same desk. It kills its process at the first booking that reaches this point.
    #[must_use]
    pub fn dying_at(mut self, point: Option<DiePoint>) -> Self {
        self.die_at = point;
        self
    }

    /// A place for one booking.
    pub(crate) fn place(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.places.try_acquire().map_err(|_| Error::Overloaded)
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
        let statement = "-- booking::user\nSELECT id, stripe_customer_id FROM users WHERE email = $1";
        let row = self.client().await?.query_opt(statement, &[&email]).await?;
        Ok(row.map(|row| User { id: row.get(0), stripe_customer_id: row.get(1) }))
    }

    pub(crate) async fn client(&self) -> Result<Client, Error> {
        connect::postgres::take(&self.pool).await.map_err(|error| Error::Unavailable(format!("{error:#}")))
    }
}
