//! Commands for wallets: a credit, a debit or a transfer becomes an event and a log record in one transaction (I1, W1).
//!
//! ```text
//! write() ─▶ one queue ─▶ a group of commands ─▶ outcomes
//!                              │ another session holds the wallet
//!                              ▼
//!                         a queue of this wallet ─▶ a group that waits for this wallet ─▶ outcomes
//! ```
//!
//! So one held wallet stops no command for another wallet. The commands that wait for a wallet are written together, too: two
//! processes share a hot wallet.

use std::time::Duration;

use anyhow::Result;
use group::Queue;
use monitor::Pulse;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use wallet::write::{Command, Outcome, Verdict};

use crate::database::Database;
use crate::error::Error;
use crate::held_wallets::HeldWallets;
use crate::limits::Limits;
use crate::metrics;
use crate::wallet_commands::Commands;
use crate::wallet_model::WalletModel;

/// Commands that are written by one transaction at most. A larger group holds its wallets for longer, and is hardly cheaper
/// per command.
const GROUP_LEN_MAX: usize = 300;

/// How long a command may wait for held wallets. A transfer needs two that are free at the same time.
const HELD_WAIT: Duration = Duration::from_secs(1);

/// Writes commands. Clones share the writing tasks. After the last one is dropped, the tasks write the commands that wait, and
/// end.
#[derive(Clone)]
pub(crate) struct WalletWriter {
    commands: Queue<Commands>,
    held: HeldWallets,
}

impl WalletWriter {
    /// Starts the writing task. It connects when first used. The handle ends when every [`WalletWriter`] is gone and every
    /// accepted command has its outcome.
    ///
    /// # Errors
    /// The pool of connections cannot be built.
    pub fn start(
        postgres: &tokio_postgres::Config,
        model: WalletModel,
        limits: &Limits,
        pulse: Pulse,
    ) -> Result<(Self, JoinHandle<()>)> {
        let database = Database::new(postgres, limits.answer_wait)?;
        let commands = Commands::new(database, model, limits);
        let held = HeldWallets::new(commands.clone(), limits);
        let group_limits = group::Limits {
            queue_len_max: limits.queue_len_max,
            group_len_max: GROUP_LEN_MAX.min(limits.group_len_max),
            write_wait: limits.answer_wait,
        };
        let (commands, writing) = Queue::start(commands, group_limits, pulse);
        Ok((Self { commands, held }, writing))
    }

    /// Writes the event of a command and its log record, or those of both wallets of a transfer. Returns when they are
    /// durable. A rejected attempt is an outcome, too.
    ///
    /// # Errors
    /// [`Error::KeyMismatch`]: the key was used for another command. [`Error::WalletBusy`], [`Error::Overloaded`] and
    /// [`Error::Unavailable`]: nothing was written. [`Error::OutcomeUnknown`]: the api could not find out.
    pub async fn write(&self, command: Command) -> Result<Outcome, Error> {
        let written = self.write_or_wait(command).await;
        if written == Err(Error::WalletBusy) {
            metrics::wallet_busy();
        }
        written
    }

    /// Writes the command with the others, and while another session holds its wallet, in the queue of this wallet.
    async fn write_or_wait(&self, command: Command) -> Result<Outcome, Error> {
        let deadline = Instant::now() + HELD_WAIT;
        let mut verdict = self.commands.write(command.clone()).await?.verdict().await;
        if let Verdict::Held(_) = verdict {
            metrics::wallet_held();
        }
        while let Verdict::Held(wallet) = verdict {
            if Instant::now() > deadline {
                return Err(Error::WalletBusy);
            }
            verdict = self.held.write(wallet, command.clone()).await?.verdict().await;
        }
        match verdict {
            Verdict::Done(outcome) => Ok(outcome),
            Verdict::KeyMismatch | Verdict::Held(_) => Err(Error::KeyMismatch),
        }
    }
}
