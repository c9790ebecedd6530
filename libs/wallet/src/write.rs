//! The write path: commands, and their outcomes.

use std::net::IpAddr;

use traces::TraceParent;

use crate::amount::Amount;
use crate::id::{EventId, WalletId};
use crate::state::Action;

/// An attempt that a client asks for.
#[derive(Debug, Clone)]
pub struct Command {
    /// The wallet that is credited or debited, or that pays.
    pub wallet: WalletId,
    /// What to do.
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

/// What became of a command.
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
