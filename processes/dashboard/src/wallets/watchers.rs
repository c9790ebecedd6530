//! The wallets that pages look at now.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use wallet::WalletId;

/// How many pages look at each wallet. Clones share it. There are at most as many wallets as pages.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watchers(Arc<Mutex<BTreeMap<WalletId, usize>>>);

/// A page looks at a wallet until this is dropped.
#[derive(Debug)]
pub(crate) struct Watching {
    watchers: Watchers,
    id: WalletId,
}

impl Watchers {
    /// A page begins to look at a wallet.
    pub fn watch(&self, id: WalletId) -> Watching {
        *self.lock().entry(id).or_default() += 1;
        Watching { watchers: self.clone(), id }
    }

    /// The wallets that are looked at, each once.
    pub fn ids(&self) -> Vec<WalletId> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<WalletId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watching {
    /// The wallet that the page looks at.
    pub fn id(&self) -> WalletId {
        self.id
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut counts = self.watchers.lock();
        if let Some(count) = counts.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wallet_is_read_once_for_all_pages_and_until_the_last_has_gone() {
        let watchers = Watchers::default();
        let (one, other) = (WalletId::new(), WalletId::new());
        let first = watchers.watch(one);
        let second = watchers.watch(one);
        let third = watchers.watch(other);
        assert_eq!(watchers.ids().len(), 2);
        drop(first);
        drop(third);
        assert_eq!(watchers.ids(), [one]);
        drop(second);
        assert_eq!(watchers.ids(), []);
    }
}
