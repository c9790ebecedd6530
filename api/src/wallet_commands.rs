//! Groups of commands for wallets: the part of a [`group::Queue`] that knows of them.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Client;
use group::Destination;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_postgres::error::SqlState;
use tracing::warn;
use wallet::WalletId;
use wallet::write::{Command, Unknown, Verdict};

use crate::database::{Database, QueryFailure, postgres_to_client_error, to_client_error};
use crate::error::Error;
use crate::limits::Limits;
use crate::metrics;

/// How long a group waits for one of the connections that wait for held wallets.
const PLACE_WAIT: Duration = Duration::from_millis(500);

/// The pause before an unknown COMMIT is looked up again.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Writes groups of commands.
pub(crate) struct Commands {
    database: Database,
    /// How long Postgres may take for a group.
    write_wait: Duration,
    /// How long the api tries to find out whether a group was written. Together both are shorter than the wait of the queue.
    look_wait: Duration,
    held: Option<Held>,
}

/// The wallet that every group waits for, and the places for all that wait.
struct Held {
    wallet: WalletId,
    places: Arc<Semaphore>,
}

/// Why a group has no verdicts.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Postgres refused, or the connection broke. Nothing was written.
    Postgres(tokio_postgres::Error),
    /// The error for the clients is known, and logged.
    Known(Error),
}

impl Commands {
    /// Groups that wait for no wallet.
    pub fn new(database: Database, limits: &Limits) -> Self {
        Self { database, write_wait: limits.answer_wait / 2, look_wait: limits.answer_wait / 3, held: None }
    }

    /// Groups that wait for this wallet, as many at one time as there are places.
    pub fn waiting_for(self, wallet: WalletId, places: Arc<Semaphore>) -> Self {
        Self { held: Some(Held { wallet, places }), ..self }
    }

    /// Finds out whether a group was written whose COMMIT was not answered. A client without a key could not retry safely.
    async fn look_up(&self, unknown: Unknown) -> Result<Vec<Verdict>, Failure> {
        let deadline = Instant::now() + self.look_wait;
        let error = loop {
            match timeout_at(deadline, self.look(&unknown)).await {
                Ok(Ok(true)) => {
                    metrics::commit_looked_up("written");
                    return Ok(unknown.verdicts);
                }
                Ok(Ok(false)) => break Error::Unavailable,
                Ok(Err(_)) => sleep(LOOK_PAUSE).await,
                Err(_) => break Error::OutcomeUnknown,
            }
        };
        metrics::commit_looked_up(if error == Error::Unavailable { "not_written" } else { "unknown" });
        Err(Failure::Known(error))
    }

    async fn look(&self, unknown: &Unknown) -> Result<bool, Error> {
        let session = Session::begin(&self.database).await?;
        let is_written =
            unknown.is_written(session.client()).await.map_err(|error| postgres_to_client_error(&error))?;
        session.end();
        Ok(is_written)
    }
}

impl Destination for Commands {
    type Request = Command;
    type Response = Verdict;
    type Error = Error;
    /// Each group takes a connection by itself, because it may need a second one.
    type Connection = ();
    type Failure = Failure;

    async fn connect(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn write(&self, (): &(), commands: &[Command]) -> Result<Vec<Verdict>, Failure> {
        let _place = match &self.held {
            Some(held) => match timeout(PLACE_WAIT, held.places.acquire()).await {
                Ok(place) => Some(place),
                Err(_) => return Err(Failure::Known(Error::WalletBusy)),
            },
            None => None,
        };
        let session = Session::begin(&self.database).await.map_err(Failure::Known)?;
        let waits_for = self.held.as_ref().map(|held| held.wallet);
        let verdicts = match wallet::write::write(session.client(), commands, waits_for, self.write_wait).await {
            Ok(verdicts) => {
                session.end();
                verdicts
            }
            Err(wallet::write::Failure::Postgres(error)) => {
                session.end();
                return Err(Failure::Postgres(error));
            }
            Err(wallet::write::Failure::Late) => return Err(Failure::Known(to_client_error(&QueryFailure::Late))),
            Err(wallet::write::Failure::Unknown(unknown)) => {
                drop(session);
                warn!("no response to COMMIT: looking whether the events were written");
                self.look_up(*unknown).await?
            }
        };
        metrics::commands_written(&verdicts);
        Ok(verdicts)
    }

    /// Invalid data (class 22) and violated constraints (class 23) concern one command. So does a lock row that another
    /// session has inserted and not committed. A group that waits for a wallet fails as a whole if it does not get it.
    fn concerns_one_request(&self, failure: &Failure) -> bool {
        let Failure::Postgres(error) = failure else { return false };
        error.code().is_some_and(|state| {
            ["22", "23"].contains(&&state.code()[..2]) || *state == SqlState::LOCK_NOT_AVAILABLE && self.held.is_none()
        })
    }

    fn error_of(&self, failure: Failure) -> Error {
        match failure {
            Failure::Postgres(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Error::WalletBusy,
            Failure::Postgres(error) => postgres_to_client_error(&error),
            Failure::Known(error) => error,
        }
    }

    /// The group may have been written, and there was no time left to look.
    fn abandon(&self, (): ()) -> Error {
        warn!("a group of commands has not ended in time");
        Error::OutcomeUnknown
    }
}

/// A connection that is discarded unless its transaction has ended: the next user would go on in the open transaction.
struct Session {
    database: Database,
    client: Option<Client>,
}

impl Session {
    async fn begin(database: &Database) -> Result<Self, Error> {
        Ok(Self { database: database.clone(), client: Some(database.client().await?) })
    }

    fn client(&self) -> &Client {
        self.client.as_ref().expect("it is taken at the end")
    }

    /// No transaction is open.
    fn end(mut self) {
        drop(self.client.take());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            self.database.discard(client);
        }
    }
}
