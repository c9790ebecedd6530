//! The wallets' part of a sample.

use std::collections::BTreeMap;

use serde::Serialize;
use wallet::WalletId;

/// The figures of the wallets, as far as they are known. Figures of a server that does not answer are the last known ones.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Wallets {
    /// Why Postgres' figures are old or absent, in a sentence. `None`: they are of this sample.
    pub problem: Option<&'static str>,
    /// When Postgres' figures were read, in milliseconds since 1970. `None`: they never were.
    pub at_ms: Option<u64>,
    /// The newest event of each wallet that was used last, the newest first.
    pub newest: Vec<WalletEvent>,
    /// The latest count of the money, however old.
    pub money: Option<Money>,
    /// Why the newest count of the money has failed, in a sentence. `None`: it has not.
    pub money_problem: Option<&'static str>,
    /// Accepted events per second, between two counts of the money. `None`: not known yet.
    pub accepted_per_s: Option<f64>,
    /// The same for rejected events.
    pub rejected_per_s: Option<f64>,
    pub model: Model,
    /// Figures that the watched processes count.
    pub told: Told,
    /// The wallets that pages look at. Each page is sent its own.
    #[serde(skip)]
    pub watched: BTreeMap<WalletId, Wallet>,
}

/// All balances, and all money that came from the world, counted in one snapshot (W4).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Money {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub took_ms: f64,
    pub wallet_count: i64,
    pub accepted_count: i64,
    pub rejected_count: i64,
    /// The sum of all balances, as a decimal: it may be more than 64 bits hold.
    pub balances: String,
    /// The sum of accepted credits minus accepted debits, as a decimal.
    pub from_world: String,
    /// Whether both are equal.
    pub adds_up: bool,
}

/// The state of the read model in Redis.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Model {
    /// Redis does not answer, or refuses.
    #[default]
    Unknown,
    /// There is no mark, so every read is one of Postgres.
    Unmarked,
    /// Documents of the mark's epoch are valid.
    Marked {
        /// Which build of the model this is.
        epoch: String,
        /// The offset up to which the consumer has made the model certain.
        offset: i64,
    },
}

/// Figures that the processes count, not Postgres. `None`: no process that is watched counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Told {
    pub redis_reads_per_s: Option<f64>,
    pub postgres_reads_per_s: Option<f64>,
    /// Whether the model is being rebuilt.
    pub is_rebuilding: Option<bool>,
}

/// A wallet that a page looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Wallet {
    /// `None`: Postgres does not answer.
    pub postgres: Option<InPostgres>,
    pub agreement: Agreement,
    /// The version of the document in Redis. `None`: there is none that a reader could read.
    pub redis_version: Option<i64>,
}

/// A wallet as its events tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct InPostgres {
    pub version: i64,
    pub balance: String,
    /// The event that led to this version. `None`: the wallet was never used.
    #[serde(skip)]
    pub event_id: Option<String>,
    /// The last events, the newest first.
    pub events: Vec<WalletEvent>,
}

/// Whether Redis has the same state of a wallet as Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Agreement {
    /// Version, event and balance are equal.
    Equal,
    /// Redis has no document. The next read writes it.
    Absent,
    /// The document is of another epoch than the mark: readers pass over it.
    OtherEpoch,
    /// There is no mark: readers pass over every document.
    Unmarked,
    /// Redis has an older version.
    Behind,
    /// Redis has something else than Postgres.
    Differs,
    /// Postgres or Redis does not answer.
    Unknown,
}

/// One attempt at a wallet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct WalletEvent {
    pub wallet_id: String,
    /// Milliseconds since 1970.
    pub at_ms: i64,
    pub version: i64,
    /// As a decimal.
    pub balance: String,
    pub accepted: bool,
    /// Why it was rejected.
    pub reason: Option<String>,
    pub action: String,
    /// As a decimal, negative if it takes money from the wallet.
    pub amount: String,
    pub counterparty: String,
}
