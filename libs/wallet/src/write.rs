//! The write path: commands become events and log records, many in one transaction of two flights.
//!
//! ```text
//! flight 1   insert missing lock rows │ BEGIN │ lock the wallets │ read their states, and the events with known keys
//!            BEGIN is confirmed: decide one command after another, in memory
//! flight 2   write all events and stage all records │ COMMIT │ hint
//! ```
//!
//! The statements of a flight are sent without waiting for each other. If BEGIN fails, each statement behind it runs alone,
//! so those of flight 1 must not matter then: a lock row says nothing, and the locks end at once.
//!
//! - **No deadlock.** A transaction waits for one lock row at most, and holds none while it waits. It takes the others only
//!   if they are free ([`Verdict::Held`]).
//! - **Order.** Records are staged after the locks are taken, in the order of decisions. So the record of version N + 1 of a
//!   wallet has a higher offset than that of version N.
//! - **An unknown COMMIT** can be looked up, because the ids of the events are drawn before: [`Unknown::is_written`].

mod changes;
mod decisions;
mod flights;
mod statements;
mod unknown;

use std::net::IpAddr;

use traces::TraceParent;

use crate::amount::Amount;
use crate::id::{EventId, WalletId};
use crate::state::Action;

pub use decisions::Verdict;
pub use flights::{Failure, Written, write};
pub use unknown::Unknown;

/// An attempt that a client asks for.
#[derive(Debug, Clone)]
pub struct Command {
    /// The wallet that is credited or debited, or that pays.
    pub wallet: WalletId,
    /// The kind of the command.
    pub action: Action,
    /// The wallet that receives a transfer: another than [`wallet`](Self::wallet). `None` for a credit or a debit.
    pub to: Option<WalletId>,
    /// How much.
    pub amount: Amount,
    /// The client's Idempotency-Key, at most 255 characters. It belongs to [`wallet`](Self::wallet).
    pub key: Option<String>,
    /// The address of the client.
    pub origin_ip: IpAddr,
    /// The trace that the events and the log records belong to.
    pub traceparent: Option<TraceParent>,
}

impl Command {
    /// The wallets whose states it needs.
    pub fn wallets(&self) -> impl Iterator<Item = WalletId> + use<> {
        std::iter::once(self.wallet).chain(self.to)
    }
}

/// The result of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The event of [`Command::wallet`].
    pub event_id: EventId,
    /// Why the attempt was rejected. `None`: it was accepted.
    pub rejection: Option<String>,
    /// The version of [`Command::wallet`] after the event.
    pub version: i64,
    /// Its balance after the event, in cents.
    pub balance_minor: i64,
    /// Whether an earlier command with this key had this outcome, and nothing was written now.
    pub is_replayed: bool,
}
