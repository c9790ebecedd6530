//! The ledger: customers, charges, and the result of each idempotency key. Only the journal's writing task changes it, except
//! for the keys of requests in progress: so every entry here is on disk.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use journal::Journaled;
use rand::distr::{Alphanumeric, SampleString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A customer who exists from the start and whose card is good: user@example.com.
pub const GOOD_CUSTOMER: &str = "cus_good";

/// A customer who exists from the start and whose card is declined: user-bad-source@example.com.
pub const BAD_CUSTOMER: &str = "cus_bad";

/// Stripe's test source that can be charged.
pub(crate) const GOOD_SOURCE: &str = "tok_visa";

/// Stripe's test source for a customer whose every charge is declined.
pub(crate) const BAD_SOURCE: &str = "tok_chargeCustomerFail";

pub(crate) const DECLINED_CODE: &str = "card_declined";
pub(crate) const DECLINED_MESSAGE: &str = "Your card was declined.";

/// A line of the journal: a request and its result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The request's idempotency key.
    pub key: Option<String>,
    /// The request in a canonical form, to recognize another request with the same key.
    pub request: String,
    pub made: Made,
}

/// The result of a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Made {
    Customer(Customer),
    Charge(ChargeObject),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Customer {
    pub id: String,
    pub created: u64,
    pub email: String,
    pub source: String,
}

/// A charge: paid, declined, or one of these later. `created` is in seconds since 1970.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ChargeObject {
    pub id: String,
    pub created: u64,
    pub amount: i64,
    pub currency: String,
    pub customer: String,
    pub description: Option<String>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    pub declined: bool,
    /// Until then it is pending; in milliseconds since 1970. `None`: it never was.
    #[serde(default)]
    pub settles_at_ms: Option<u64>,
}

/// The state of an idempotency key.
#[derive(Debug)]
pub(crate) enum Known {
    /// Its first request is in progress.
    InHand,
    /// Its first request is finished. Every later request receives the same response.
    Done { request: String, made: Made },
}

/// Customers, charges and keys.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub keys: HashMap<String, Known>,
    pub customers: HashMap<String, Customer>,
    /// In the order of the journal.
    pub charges: Vec<ChargeObject>,
    /// The index in `charges` of each id.
    pub places: HashMap<String, usize>,
}

impl Ledger {
    /// A ledger without charges and with two customers.
    pub fn new() -> Self {
        let there = [
            (GOOD_CUSTOMER, "user@example.com", GOOD_SOURCE),
            (BAD_CUSTOMER, "user-bad-source@example.com", BAD_SOURCE),
        ];
        let customers = there.map(|(id, email, source)| {
            let (id, email, source) = (id.to_owned(), email.to_owned(), source.to_owned());
            (id.clone(), Customer { id, created: 0, email, source })
        });
        Self { keys: HashMap::new(), customers: customers.into(), charges: Vec::new(), places: HashMap::new() }
    }
}

impl Journaled for Ledger {
    type Entry = Entry;
    type Outcome = ();

    fn apply(&mut self, Entry { key, request, made }: Entry) {
        match &made {
            Made::Customer(customer) => {
                self.customers.insert(customer.id.clone(), customer.clone());
            }
            Made::Charge(charge) => {
                self.places.insert(charge.id.clone(), self.charges.len());
                self.charges.push(charge.clone());
            }
        }
        if let Some(key) = key {
            self.keys.insert(key, Known::Done { request, made });
        }
    }
}

impl Customer {
    /// The customer as Stripe shows it.
    pub fn to_json(&self) -> Value {
        let Self { id, created, email, .. } = self;
        json!({ "id": id, "object": "customer", "created": created, "email": email, "livemode": false })
    }
}

impl ChargeObject {
    /// The charge as Stripe shows it now, with the fields that this project reads.
    pub fn to_json(&self) -> Value {
        self.to_json_at(now_ms())
    }

    /// The charge as it was when it was made: every retry receives this response.
    pub fn to_json_as_made(&self) -> Value {
        self.to_json_at(0)
    }

    fn to_json_at(&self, at_ms: u64) -> Value {
        let is_pending = self.settles_at_ms.is_some_and(|settles_at_ms| at_ms < settles_at_ms);
        let has_failed = self.declined && !is_pending;
        let status = match (is_pending, has_failed) {
            (true, _) => "pending",
            (_, true) => "failed",
            _ => "succeeded",
        };
        json!({
            "id": self.id,
            "object": "charge",
            "amount": self.amount,
            "created": self.created,
            "currency": self.currency,
            "customer": self.customer,
            "description": self.description,
            "failure_code": has_failed.then_some(DECLINED_CODE),
            "failure_message": has_failed.then_some(DECLINED_MESSAGE),
            "livemode": false,
            "metadata": self.metadata,
            "paid": status == "succeeded",
            "status": status,
        })
    }
}

/// A new id that cannot be guessed: 143 random bits after the prefix.
pub(crate) fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", Alphanumeric.sample_string(&mut rand::rng(), 24))
}

/// The present time, in seconds since 1970.
pub(crate) fn now() -> u64 {
    now_ms() / 1000
}

/// The present time, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
