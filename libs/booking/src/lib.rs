//! Booked rides. A client may send a request any number of times, and any process may crash in between: there is one ride,
//! one charge, one receipt.
//!
//! ```text
//! started --ride, audit, record 'ride create'--> ride_created
//!                         (the processor is asked to charge; no transaction is open)
//! ride_created --charge id, audit, record 'charge create'--> charge_created
//! ride_created --declined: audit, record 'charge decline', response 402--> finished
//! charge_created --record 'receipt create', audit, response 201--> finished
//! ```
//!
//! Each arrow is one transaction, which also moves the recovery point. If the processor is away or does not answer, it is
//! unknown whether it has charged. The request then stays at `ride_created`, and the next try asks under the same key of
//! ours, or looks for the charge, so that it is charged once. The api books, and completer finishes the bookings that clients have left; both use
//! this library.

mod args;
mod book;
mod breaker;
mod charging;
mod complete;
mod desk;
mod error;
mod journey;
mod order;
mod phases;
mod trial;
mod unfinished;

pub use args::BookingArgs;
pub use complete::{Completion, Patience, SIDE_BY_SIDE_MAX, complete};
pub use desk::{Desk, DiePoint, PLACE_COUNT};
pub use error::Error;
pub use journey::Journey;
pub use order::{AMOUNT_CENTS, CURRENCY, Order, Reply, User};
pub use trial::TRIAL;
pub use unfinished::{DOUBTFUL_AFTER, Unfinished, describe_metrics, unfinished};
