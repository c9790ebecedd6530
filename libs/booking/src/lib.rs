//! Booked rides. A client may send a request any number of times, and anything may crash in between: there is one ride,
//! one charge, one receipt.
//!
//! ```text
//! started --ride, audit, record 'ride create'--> ride_created
//!                         (the processor is asked to charge; no transaction is open)
//! ride_created --charge id, audit, record 'charge create'--> charge_created
//! ride_created --declined: audit, record 'charge decline', answer 402--> finished
//! charge_created --record 'receipt create', audit, answer 201--> finished
//! ```
//!
//! Each arrow is one transaction, which also moves the recovery point. When the processor is away, or does not answer,
//! nobody knows whether it has charged: the request stays at `ride_created`, and the next try asks under the same key of
//! ours, so that it is charged once. api books, completer brings to an end what clients have left; both by this crate.

mod args;
mod complete;
mod desk;
mod journey;
mod phases;

pub use args::BookingArgs;
pub use complete::{Completion, Patience, complete};
pub use desk::{Desk, DiePoint, Error, Order, Reply, User};
pub use journey::Journey;

/// What a ride costs, in cents.
pub const AMOUNT_CENTS: i64 = 2000;

/// In what currency.
pub const CURRENCY: &str = "usd";
