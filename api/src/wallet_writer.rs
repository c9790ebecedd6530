//! Commands for wallets: a credit, a debit or a transfer becomes an event and a log record in one transaction (I1, W1).

use anyhow::Result;
use wallet::write::{Command, Outcome};

use crate::database::Database;
use crate::error::Error;
use crate::limits::Limits;

/// Writes commands. Clones share the connections.
#[derive(Clone)]
pub(crate) struct WalletWriter {
    #[expect(dead_code, reason = "the next commit writes")]
    database: Database,
}

#[expect(dead_code, reason = "the handlers come with a later commit")]
impl WalletWriter {
    /// Connects when first used.
    ///
    /// # Errors
    /// The pool of connections cannot be built.
    pub fn start(postgres: &tokio_postgres::Config, limits: &Limits) -> Result<Self> {
        Ok(Self { database: Database::new(postgres, limits.answer_wait)? })
    }

    /// Writes the event of a command and its log record, or those of both wallets of a transfer. Returns when they are
    /// durable. A rejected attempt is an outcome, too.
    ///
    /// # Errors
    /// [`Error::KeyMismatch`]: the key was used for another command. [`Error::WalletBusy`], [`Error::Overloaded`] and
    /// [`Error::Unavailable`]: nothing was written. [`Error::OutcomeUnknown`]: the api could not find out.
    pub async fn write(&self, _command: Command) -> Result<Outcome, Error> {
        Err(Error::Unavailable)
    }
}
