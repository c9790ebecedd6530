//! A booking as it is ordered, and as it is answered.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use traces::TraceParent;

use crate::journey::Journey;

/// The price of a ride, in cents.
pub const AMOUNT_CENTS: i64 = 2000;

/// The currency of that price.
pub const CURRENCY: &str = "usd";

/// The target of every booking, before the user's id.
pub(crate) const TARGET: &str = "[POST]/rides of user ";

/// The user who books.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The row in `users`.
    pub id: i64,
    /// The customer whom the payment processor charges.
    pub stripe_customer_id: String,
}

/// A ride that a user orders.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// Origin and target of the ride.
    pub journey: Journey,
    /// The client's address, for the audit.
    pub origin_ip: IpAddr,
    /// The trace of this request. Records that an earlier or a later request stages belong to that request's trace.
    pub traceparent: Option<TraceParent>,
    /// Fail before the charge, to show that a booking survives this.
    pub raise_error: bool,
}

/// The stored part of an order. It must be the same in every retry.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Payload {
    pub user_id: i64,
    #[serde(flatten)]
    pub journey: Journey,
}

impl Payload {
    /// Whether two stored payloads ask for the same ride. A program of another version may have stored one of them, so their
    /// bytes may differ: a field that is new has its default value in older payloads.
    pub fn is_same(stored: &[u8], asked: &[u8]) -> bool {
        let read = |bytes| serde_json::from_slice::<Self>(bytes).ok();
        stored == asked || read(stored).is_some_and(|stored| read(asked) == Some(stored))
    }
}

/// The stored response. Every retry receives these bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The HTTP status: 201, or 402 if the charge was declined.
    pub status: u16,
    /// A JSON object.
    pub body: String,
    /// Whether an earlier request has stored it. This field is not stored.
    #[serde(skip)]
    pub is_replayed: bool,
}
