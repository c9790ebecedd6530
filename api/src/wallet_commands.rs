//! Groups of commands for wallets: the part of a [`group::Queue`] that knows of them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool_postgres::Client;
use group::{Destination, Refusal};
use tokio::sync::SetOnce;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::warn;
use wallet::WalletId;
use wallet::documents::Change;
use wallet::write::{Command, Unknown, Verdict};

use crate::database::{Database, QueryFailure, concerns_one_row, postgres_to_client_error, to_client_error};
use crate::error::Error;
use crate::held_places::Places;
use crate::limits::Limits;
use crate::metrics;
use crate::wallet_model::WalletModel;

/// How long a response waits until readers see the effect of its command.
const SHOWN_WAIT: Duration = Duration::from_millis(20);

/// The pause before an unknown COMMIT is looked up again.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Writes groups of commands. Clones share the connections.
#[derive(Clone)]
pub(crate) struct Commands {
    database: Database,
    /// How long a group may take from its beginning until it is written.
    write_wait: Duration,
    /// How long it may take until the api has found out whether it was written. The queue waits longer.
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
        let _ = timeout(SHOWN_WAIT, self.shown.wait()).await;
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
        let (write_wait, look_wait) = (limits.answer_wait / 2, limits.answer_wait * 5 / 6);
        Self { database, write_wait, look_wait, model, places: Arc::new(Places::new()), waits_for: None }
    }

    /// Groups that wait for this wallet, as many at one time as there are places.
    pub fn waiting_for(&self, wallet: WalletId) -> Self {
        Self { waits_for: Some(wallet), ..self.clone() }
    }

    /// Writes the group, or fails. The next group does not wait until readers see this one.
    async fn written(&self, begun_at: Instant, commands: &[Command]) -> Result<(Vec<Verdict>, Vec<Change>), Failure> {
        let deadline = begun_at + self.write_wait;
        let session = timeout_at(deadline, Session::begin(&self.database)).await;
        let session = session.unwrap_or(Err(Error::Unavailable)).map_err(Failure::Known)?;
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
                Ok((self.look_up(*unknown, begun_at + self.look_wait).await?, Vec::new()))
            }
        }
    }

    /// Finds out whether a group was written whose COMMIT was not answered. A client without a key could not retry safely.
    async fn look_up(&self, unknown: Unknown, deadline: Instant) -> Result<Vec<Verdict>, Failure> {
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
    /// A group takes a connection when it writes, because it may need a second one.
    type Connection = Attempt;
    type Failure = Failure;

    async fn connect(&self) -> Result<Attempt, Error> {
        Ok(Attempt { begun_at: Instant::now(), doubtful: Mutex::default() })
    }

    async fn write(&self, attempt: &Attempt, commands: &[Command]) -> Result<Vec<Response>, Failure> {
        let _place = match self.waits_for {
            Some(wallet) => Some(self.places.take(wallet).await.ok_or(Failure::Known(Error::WalletBusy))?),
            None => None,
        };
        // Before the transaction: if Postgres is put back meanwhile, the read model must refuse these changes.
        let epoch = self.model.epoch();
        attempt.doubt(commands.iter().flat_map(Command::wallets).collect());
        let written = self.written(attempt.begun_at, commands).await;
        attempt.doubt(Vec::new());
        let (verdicts, changes) = written?;
        metrics::commands_written(&verdicts);
        let shown = Arc::new(SetOnce::new());
        let (showing, model) = (Arc::clone(&shown), self.model.clone());
        tokio::spawn(async move {
            model.write_through(epoch, &changes).await;
            let _ = showing.set(());
        });
        Ok(verdicts.into_iter().map(|verdict| Response { verdict, shown: Arc::clone(&shown) }).collect())
    }

    fn concerns_one_request(&self, failure: &Failure) -> bool {
        matches!(failure, Failure::Postgres(error) if concerns_one_row(error))
    }

    fn error_of(&self, failure: Failure) -> Error {
        match failure {
            Failure::Postgres(error) => postgres_to_client_error(&error),
            Failure::Known(error) => error,
        }
    }

    fn error_of_refusal(refusal: Refusal) -> Error {
        Error::of_refusal(refusal, Error::OutcomeUnknown)
    }

    /// There was no time left to look whether the group was written.
    fn abandon(&self, attempt: Attempt) -> Error {
        warn!("a group of commands has not ended in time");
        let doubtful = attempt.doubt(Vec::new());
        if doubtful.is_empty() {
            return Error::Unavailable;
        }
        self.model.forget(doubtful);
        Error::OutcomeUnknown
    }
}

/// A group on its way.
pub(crate) struct Attempt {
    begun_at: Instant,
    /// The wallets of commands whose COMMIT may have been sent, and whose outcome is not known.
    doubtful: Mutex<Vec<WalletId>>,
}

impl Attempt {
    /// Remembers these wallets as doubtful, instead of those before.
    fn doubt(&self, wallets: Vec<WalletId>) -> Vec<WalletId> {
        std::mem::replace(&mut *self.doubtful.lock().unwrap_or_else(PoisonError::into_inner), wallets)
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

#[cfg(test)]
mod tests {
    use group::Queue;
    use monitor::Health;
    use tokio::net::TcpListener;
    use wallet::{Action, Amount};

    use super::*;

    fn commands(postgres: &tokio_postgres::Config, answer_wait: Duration) -> Commands {
        let limits = Limits { answer_wait, ..Limits::default() };
        let database = Database::new(postgres, answer_wait).unwrap();
        Commands::new(database.clone(), WalletModel::new(None, database), &limits)
    }

    #[tokio::test]
    async fn a_command_that_reaches_no_postgres_was_certainly_not_written() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut postgres = tokio_postgres::Config::new();
        postgres.host("127.0.0.1").port(silent.local_addr().unwrap().port()).user("api");
        let write_wait = Duration::from_secs(1);
        let limits = group::Limits { queue_len_max: 1, group_len_max: 1, write_wait };
        let pulse = Health::default().pulse("writes", write_wait);
        let (queue, _task) = Queue::start(commands(&postgres, write_wait), limits, pulse);
        let command = Command {
            wallet: WalletId::new(),
            action: Action::Credit,
            to: None,
            amount: Amount::from_minor(500).unwrap(),
            key: None,
            origin_ip: [127, 0, 0, 1].into(),
            traceparent: None,
        };
        assert_eq!(queue.write(command).await.err(), Some(Error::Unavailable));
    }

    #[tokio::test]
    async fn only_a_command_whose_commit_may_be_sent_has_an_unknown_outcome() {
        let commands = commands(&tokio_postgres::Config::new(), Duration::from_secs(1));
        let attempt = commands.connect().await.unwrap();
        assert_eq!(commands.abandon(attempt), Error::Unavailable);
        let attempt = commands.connect().await.unwrap();
        attempt.doubt(vec![WalletId::new()]);
        assert_eq!(commands.abandon(attempt), Error::OutcomeUnknown);
        for (refusal, error) in [
            (Refusal::Overloaded, Error::Overloaded),
            (Refusal::Closed, Error::Unavailable),
            (Refusal::Lost, Error::OutcomeUnknown),
        ] {
            assert_eq!(Commands::error_of_refusal(refusal), error);
        }
    }
}
