//! Groups of commands for wallets: the part of a [`group::Queue`] that knows of them.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Client;
use group::Destination;
use tokio::sync::SetOnce;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::warn;
use wallet::WalletId;
use wallet::documents::Change;
use wallet::model::API_WAIT;
use wallet::write::{Command, Unknown, Verdict};

use crate::database::{Database, QueryFailure, postgres_to_client_error, to_client_error};
use crate::error::Error;
use crate::held_places::Places;
use crate::limits::Limits;
use crate::metrics;
use crate::wallet_model::WalletModel;

/// The pause before an unknown COMMIT is looked up again.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Writes groups of commands. Clones share the connections.
#[derive(Clone)]
pub(crate) struct Commands {
    database: Database,
    /// How long Postgres may take for a group.
    write_wait: Duration,
    /// How long the api tries to find out whether a group was written. Together both are shorter than the wait of the queue.
    look_wait: Duration,
    model: WalletModel,
    places: Arc<Places>,
    /// The wallet that every group waits for.
    waits_for: Option<WalletId>,
}

/// The verdict on a command, and whether readers see its effect.
pub(crate) struct Response {
    verdict: Verdict,
    shown: Arc<SetOnce<()>>,
}

impl Response {
    /// The verdict, once the read model has the effect, or soon at least.
    pub async fn verdict(self) -> Verdict {
        // An error means that Redis is slow or away. Readers see the effect later, and with its version at once.
        let _ = timeout(API_WAIT, self.shown.wait()).await;
        self.verdict
    }
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
    pub fn new(database: Database, model: WalletModel, limits: &Limits) -> Self {
        let (write_wait, look_wait) = (limits.answer_wait / 2, limits.answer_wait / 3);
        Self { database, write_wait, look_wait, model, places: Arc::new(Places::new()), waits_for: None }
    }

    /// Groups that wait for this wallet, as many at one time as there are places.
    pub fn waiting_for(&self, wallet: WalletId) -> Self {
        Self { waits_for: Some(wallet), ..self.clone() }
    }

    /// Writes the group, or fails. The next group does not wait until readers see this one.
    async fn written(&self, session: Session, commands: &[Command]) -> Result<(Vec<Verdict>, Vec<Change>), Failure> {
        let deadline = Instant::now() + self.write_wait;
        let stuck = self.places.stuck();
        match wallet::write::write(session.client(), commands, self.waits_for, &stuck, deadline).await {
            Ok(written) => {
                session.end();
                match self.waits_for {
                    Some(wallet) if written.verdicts.contains(&Verdict::Held(wallet)) => self.places.was_held(wallet),
                    _ => self.places.were_free(written.changes.iter().map(|change| change.wallet)),
                }
                Ok((written.verdicts, written.changes))
            }
            Err(wallet::write::Failure::Postgres(error)) => {
                session.end();
                Err(Failure::Postgres(error))
            }
            Err(wallet::write::Failure::Late) => Err(Failure::Known(to_client_error(&QueryFailure::Late))),
            Err(wallet::write::Failure::Unknown(unknown)) => {
                session.close();
                warn!("no response to COMMIT: looking whether the events were written");
                Ok((self.look_up(*unknown).await?, Vec::new()))
            }
        }
    }

    /// Finds out whether a group was written whose COMMIT was not answered. A client without a key could not retry safely.
    async fn look_up(&self, unknown: Unknown) -> Result<Vec<Verdict>, Failure> {
        let deadline = Instant::now() + self.look_wait;
        let error = loop {
            match timeout_at(deadline, self.look(&unknown)).await {
                Ok(Ok(true)) => {
                    self.model.forget(unknown.wallets);
                    metrics::commit_looked_up("written");
                    return Ok(unknown.verdicts);
                }
                Ok(Ok(false)) => break Error::Unavailable,
                Ok(Err(_)) => sleep(LOOK_PAUSE).await,
                Err(_) => break Error::OutcomeUnknown,
            }
        };
        self.model.forget(unknown.wallets);
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
    type Response = Response;
    type Error = Error;
    /// Each group takes a connection by itself, because it may need a second one.
    type Connection = ();
    type Failure = Failure;

    async fn connect(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn write(&self, (): &(), commands: &[Command]) -> Result<Vec<Response>, Failure> {
        let _place = match self.waits_for {
            Some(wallet) => Some(self.places.take(wallet).await.ok_or(Failure::Known(Error::WalletBusy))?),
            None => None,
        };
        // Before the transaction: if Postgres is put back meanwhile, the read model must refuse these changes.
        let epoch = self.model.epoch();
        let session = Session::begin(&self.database).await.map_err(Failure::Known)?;
        let (verdicts, changes) = self.written(session, commands).await?;
        metrics::commands_written(&verdicts);
        let shown = Arc::new(SetOnce::new());
        let (showing, model) = (Arc::clone(&shown), self.model.clone());
        tokio::spawn(async move {
            model.write_through(epoch, &changes).await;
            let _ = showing.set(());
        });
        Ok(verdicts.into_iter().map(|verdict| Response { verdict, shown: Arc::clone(&shown) }).collect())
    }

    /// Invalid data (class 22) and violated constraints (class 23) concern one command.
    fn concerns_one_request(&self, failure: &Failure) -> bool {
        let Failure::Postgres(error) = failure else { return false };
        error.code().is_some_and(|state| ["22", "23"].contains(&&state.code()[..2]))
    }

    fn error_of(&self, failure: Failure) -> Error {
        match failure {
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

    /// A COMMIT is on its way.
    fn close(mut self) {
        if let Some(client) = self.client.take() {
            self.database.close(client);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            self.database.discard(client);
        }
    }
}
