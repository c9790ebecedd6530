//! Documents: a wallet as readers see it, its state with its newest transactions. They are read from Postgres by one statement,
//! for misses, for the scrubber and for a rebuild. The read model stores them in Redis as JSON.

mod query;

use jiff::Timestamp;

use crate::{EventId, WalletId};

pub use query::{DOCS, docs};

/// The number of transactions in a document at most. With 100 a document took 11 kB, and a write 24 µs of Redis.
pub const TRANSACTION_COUNT_MAX: usize = 20;

/// A wallet that was credited at least once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The wallet.
    pub wallet: WalletId,
    /// The number of accepted events, from 1 on.
    pub version: i64,
    /// The newest accepted event.
    pub event_id: EventId,
    /// When it was accepted.
    pub timestamp: Timestamp,
    /// In cents.
    pub balance_minor: i64,
    /// The newest accepted events, newest first: [`TRANSACTION_COUNT_MAX`], or all if there are fewer.
    pub transactions: Vec<Transaction>,
}

/// The state of a wallet, without its transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The number of accepted events, from 1 on.
    pub version: i64,
    /// The newest accepted event.
    pub event_id: EventId,
    /// When it was accepted.
    pub timestamp: Timestamp,
    /// In cents.
    pub balance_minor: i64,
}

/// One accepted event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction {
    /// When it was accepted.
    pub timestamp: Timestamp,
    /// The other wallet of a transfer. `None`: `world`.
    pub counterparty: Option<WalletId>,
    /// In cents; negative if it took money from the wallet.
    pub amount_minor: i64,
    /// The version of the wallet after it.
    pub version: i64,
    /// Its id.
    pub event_id: EventId,
}

/// The effect of one database transaction on one wallet: the accepted events that it added. A writer has it without asking
/// Postgres again, and the read model appends it to the document that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The wallet.
    pub wallet: WalletId,
    /// The wallet's newest accepted event before these. `None`: it had none.
    pub before: Option<EventId>,
    /// The balance after them, in cents.
    pub balance_minor: i64,
    /// The events, newest first, at least one. Those beyond the newest [`TRANSACTION_COUNT_MAX`] are not needed.
    pub transactions: Vec<Transaction>,
}

impl Document {
    /// The state without the transactions.
    pub fn head(&self) -> Head {
        let Self { version, event_id, timestamp, balance_minor, .. } = *self;
        Head { version, event_id, timestamp, balance_minor }
    }
}
