//! A transaction whose COMMIT was sent and not answered: the connection broke, or Postgres did not respond in time.

use deadpool_postgres::ClientWrapper;
use tokio_postgres::Error;

use super::decisions::Verdict;
use super::statements::{BEGIN_WITH_LOCK_WAIT, WAIT_FOR_LOCK};
use crate::id::{EventId, WalletId};

/// A group whose COMMIT was not answered. All of it was written, or nothing.
#[derive(Debug)]
pub struct Unknown {
    /// The wallet of one of its events.
    pub(super) wallet: WalletId,
    /// This event.
    pub(super) event_id: EventId,
    /// The wallets of all of them.
    pub wallets: Vec<WalletId>,
    /// The verdicts, which are true if it was written.
    pub verdicts: Vec<Verdict>,
}

impl Unknown {
    /// Finds out on another connection whether the group was written.
    ///
    /// It locks a wallet of the group first. The session of the group holds this lock until its transaction has ended. Without
    /// the lock, this session might look before the COMMIT that is still on its way.
    ///
    /// # Errors
    /// Postgres is away, or the session of the group still holds the wallet. Try again on a new connection: a transaction may
    /// be open on this one.
    pub async fn is_written(&self, client: &ClientWrapper) -> Result<bool, Error> {
        client.batch_execute(BEGIN_WITH_LOCK_WAIT).await?;
        client.query(WAIT_FOR_LOCK, &[&self.wallet.as_str()]).await?;
        let look = "-- wallet::is_written
            SELECT FROM wallet_events WHERE event_id = $1::text";
        let is_written = client.query_opt(look, &[&self.event_id.as_str()]).await?.is_some();
        client.batch_execute("ROLLBACK").await?;
        Ok(is_written)
    }
}
