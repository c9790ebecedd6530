//! Commands whose wallet another session holds. Each such wallet has a queue of its own while commands wait for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use group::Queue;
use monitor::Health;
use tokio::sync::Semaphore;
use wallet::WalletId;
use wallet::write::Command;

use crate::error::Error;
use crate::limits::Limits;
use crate::wallet_commands::{Commands, Response};

/// Connections that may wait for wallets at one time.
const PLACE_COUNT: usize = 4;

/// Commands that may wait for held wallets, all together.
const COMMAND_COUNT_MAX: usize = 500;

/// The queues of held wallets. Clones share them.
#[derive(Clone)]
pub(crate) struct HeldWallets {
    commands: Commands,
    limits: Limits,
    places: Arc<Semaphore>,
    queues: Arc<Mutex<HashMap<WalletId, HeldWallet>>>,
}

struct HeldWallet {
    queue: Queue<Commands>,
    command_count: usize,
}

impl HeldWallets {
    /// No wallet is held yet.
    pub fn new(commands: Commands, limits: &Limits) -> Self {
        let places = Arc::new(Semaphore::new(PLACE_COUNT));
        Self { commands, limits: *limits, places, queues: Arc::default() }
    }

    /// Writes a command when the wallet is free, together with all others that wait for this wallet.
    ///
    /// # Errors
    /// [`Error::WalletBusy`] if it is not free soon; [`Error::Overloaded`] if too many commands wait for held wallets.
    pub async fn write(&self, wallet: WalletId, command: Command) -> Result<Response, Error> {
        let waiting = Waiting::begin(self, wallet)?;
        waiting.queue.write(command).await
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<WalletId, HeldWallet>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, wallet: WalletId) -> HeldWallet {
        let limits = group::Limits {
            queue_len_max: COMMAND_COUNT_MAX,
            group_len_max: self.limits.group_len_max.min(COMMAND_COUNT_MAX),
            write_wait: self.limits.answer_wait,
        };
        // A held wallet makes no process unready.
        let pulse = Health::default().pulse("held wallet", Duration::MAX);
        let commands = self.commands.waiting_for(wallet, Arc::clone(&self.places));
        let (queue, _) = Queue::start(commands, limits, pulse);
        HeldWallet { queue, command_count: 0 }
    }
}

/// A command that waits for a wallet. With the last one the queue ends.
struct Waiting {
    wallets: HeldWallets,
    wallet: WalletId,
    queue: Queue<Commands>,
}

impl Waiting {
    fn begin(wallets: &HeldWallets, wallet: WalletId) -> Result<Self, Error> {
        let mut queues = wallets.queues();
        if queues.values().map(|held| held.command_count).sum::<usize>() >= COMMAND_COUNT_MAX {
            return Err(Error::Overloaded);
        }
        let held = queues.entry(wallet).or_insert_with(|| wallets.start(wallet));
        held.command_count += 1;
        Ok(Self { wallets: wallets.clone(), wallet, queue: held.queue.clone() })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut queues = self.wallets.queues();
        if let Some(held) = queues.get_mut(&self.wallet) {
            held.command_count -= 1;
            if held.command_count == 0 {
                queues.remove(&self.wallet);
            }
        }
    }
}
