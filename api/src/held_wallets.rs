//! Commands whose wallet another session holds. Each such wallet has a queue of its own while commands wait for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use group::Queue;
use monitor::Health;
use wallet::WalletId;
use wallet::write::Command;

use crate::error::Error;
use crate::limits::Limits;
use crate::wallet_commands::{Commands, Response};

/// Commands that may wait for held wallets, all together. Those for one wallet are half as many at most.
const COMMAND_COUNT_MAX: usize = 1000;

/// The queues of held wallets. Clones share them.
#[derive(Clone)]
pub(crate) struct HeldWallets {
    commands: Commands,
    limits: Limits,
    queues: Arc<Mutex<HashMap<WalletId, HeldWallet>>>,
}

struct HeldWallet {
    queue: Queue<Commands>,
    command_count: usize,
}

impl HeldWallets {
    /// No wallet is held yet.
    pub fn new(commands: Commands, limits: &Limits) -> Self {
        Self { commands, limits: *limits, queues: Arc::default() }
    }

    /// Writes a command when the wallet is free, together with all others that wait for this wallet. The verdict may be that
    /// the wallet is still held.
    ///
    /// # Errors
    /// [`Error::WalletBusy`] if too many other wallets are waited for; [`Error::Overloaded`] if too many commands wait.
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
        let (queue, _) = Queue::start(self.commands.waiting_for(wallet), limits, pulse);
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
        let count: usize = queues.values().map(|held| held.command_count).sum();
        let count_of_wallet = queues.get(&wallet).map_or(0, |held| held.command_count);
        // A wallet with many clients leaves as much room as it takes, so no wallet takes all of it.
        if count + count_of_wallet >= COMMAND_COUNT_MAX {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::Database;
    use crate::wallet_model::WalletModel;

    #[tokio::test]
    async fn a_wallet_with_many_clients_leaves_room_for_others() {
        let limits = Limits::default();
        let database = Database::new(&tokio_postgres::Config::new(), limits.answer_wait).unwrap();
        let model = WalletModel::new(None, database.clone());
        let wallets = HeldWallets::new(Commands::new(database, model, &limits), &limits);
        let mut waiting = Vec::new();
        for count in [COMMAND_COUNT_MAX / 2, COMMAND_COUNT_MAX / 4, COMMAND_COUNT_MAX / 8] {
            let wallet = WalletId::new();
            for _ in 0..count {
                waiting.push(Waiting::begin(&wallets, wallet).unwrap_or_else(|_| panic!("there is room for {count}")));
            }
            assert_eq!(Waiting::begin(&wallets, wallet).err(), Some(Error::Overloaded), "it has {count}");
        }
        waiting.clear();
        assert!(wallets.queues().is_empty());
    }
}
