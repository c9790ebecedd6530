//! The connections that wait for held wallets. A wallet is *stuck* if the last wait for it was in vain. All stuck wallets
//! share one connection, so that wallets which two processes merely share find a free one.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};
use wallet::WalletId;

/// Connections that may wait for wallets that are not stuck, at one time.
const PLACE_COUNT: usize = 4;

/// Connections that may wait for stuck wallets, at one time.
const STUCK_PLACE_COUNT: usize = 1;

/// How long a group waits for one of these connections.
const PLACE_WAIT: Duration = Duration::from_secs(1);

/// How long a wallet is stuck after a wait in vain. As long as the turns of some forty stuck wallets take, so that a wallet
/// which is still held seldom takes one of the other connections.
const STUCK_FOR: Duration = Duration::from_secs(10);

/// The places of groups that wait for a wallet.
pub(crate) struct Places {
    places: Semaphore,
    stuck_places: Semaphore,
    /// Until when each stuck wallet is stuck. Each entry costs a wait in vain, so there are some hundreds at most.
    stuck_until: Mutex<HashMap<WalletId, Instant>>,
}

impl Places {
    /// No wallet is stuck yet.
    pub fn new() -> Self {
        Self {
            places: Semaphore::new(PLACE_COUNT),
            stuck_places: Semaphore::new(STUCK_PLACE_COUNT),
            stuck_until: Mutex::default(),
        }
    }

    /// Takes a place to wait for this wallet. `None`: no place became free in time.
    pub async fn take(&self, wallet: WalletId) -> Option<SemaphorePermit<'_>> {
        timeout(PLACE_WAIT, self.places_of(wallet).acquire()).await.ok()?.ok()
    }

    fn places_of(&self, wallet: WalletId) -> &Semaphore {
        let is_stuck = self.stuck_until().get(&wallet).is_some_and(|until| *until > Instant::now());
        if is_stuck { &self.stuck_places } else { &self.places }
    }

    /// The stuck wallets.
    pub fn stuck(&self) -> HashSet<WalletId> {
        let now = Instant::now();
        self.stuck_until().iter().filter(|(_, until)| **until > now).map(|(wallet, _)| *wallet).collect()
    }

    /// The wallet was waited for in vain.
    pub fn was_held(&self, wallet: WalletId) {
        let now = Instant::now();
        let mut stuck_until = self.stuck_until();
        stuck_until.retain(|_, until| *until > now);
        stuck_until.insert(wallet, now + STUCK_FOR);
    }

    /// The wallets were locked, so they are not stuck.
    pub fn were_free(&self, wallets: impl IntoIterator<Item = WalletId>) {
        let mut stuck_until = self.stuck_until();
        if !stuck_until.is_empty() {
            for wallet in wallets {
                stuck_until.remove(&wallet);
            }
        }
    }

    fn stuck_until(&self) -> MutexGuard<'_, HashMap<WalletId, Instant>> {
        self.stuck_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stuck_wallets_share_one_place_until_they_are_free() {
        let places = Places::new();
        let [first, second, free] = [(); 3].map(|()| WalletId::new());
        places.was_held(first);
        places.was_held(second);
        let _taken = places.places_of(first).try_acquire().unwrap();
        assert!(places.places_of(second).try_acquire().is_err(), "they share one place");
        assert_eq!(places.places_of(free).available_permits(), PLACE_COUNT);
        places.were_free([second]);
        assert_eq!(places.places_of(second).available_permits(), PLACE_COUNT);
    }

    #[test]
    fn a_wallet_is_not_stuck_for_ever() {
        let places = Places::new();
        let [wallet, other] = [(); 2].map(|()| WalletId::new());
        places.stuck_until().insert(wallet, Instant::now());
        assert_eq!(places.places_of(wallet).available_permits(), PLACE_COUNT);
        places.was_held(other);
        assert!(places.stuck_until().keys().eq([&other]), "the outdated entry is gone");
    }
}
