//! Wallets: accounts whose every attempt is an event.
//!
//! ```text
//! command ─▶ decide(state) ─▶ event ─▶ apply(state) ─▶ state of the next command
//! ```
//!
//! [`decide`] and [`apply`] are pure. The api decides by them, and `audit` follows every wallet by them, so that both agree on
//! what an event means (W2).
//!
//! Readers see [`documents`]. The [`model`] stores them in Redis.

mod amount;
mod args;
pub mod documents;
mod id;
pub mod model;
mod state;
mod trial;
pub mod write;

pub use amount::{AMOUNT_MAX, Amount, NotAnAmount, decimal};
pub use args::{ModelArgs, WalletsArgs};
pub use id::{EventId, KSUID_LEN, NotAKsuid, WalletId};
pub use state::{Action, BALANCE_MAX, Event, Rejection, State, apply, decide, decide_transfer};
pub use trial::TRIAL;
