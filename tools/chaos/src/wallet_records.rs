//! The wallets' records of the log, folded: every record follows from the state before it (W2, W3), and no event has two.

use std::collections::HashMap;

use pglog::Record;
use serde::Deserialize;
use wallet::State;

use crate::history::History;

/// The data of a record.
#[derive(Debug, Deserialize)]
struct Data {
    wallet_id: String,
    version: i64,
    event_id: String,
    amount_minor: i64,
    balance_minor: i64,
    counterparty: String,
    /// The action that was rejected.
    action: Option<String>,
    reason: Option<String>,
}

/// A row of `wallet_events`, or a record about it, without the columns that only the table has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub wallet: String,
    pub version: i64,
    pub amount_minor: i64,
    pub balance_minor: i64,
    pub counterparty: String,
    pub action: String,
    /// Why it was rejected.
    pub reason: Option<String>,
}

/// The records so far.
#[derive(Default)]
pub(crate) struct WalletRecords {
    states: HashMap<String, State>,
    /// By the event's id.
    pub events: HashMap<String, Event>,
}

impl WalletRecords {
    /// Takes the next record with the object `wallet`.
    pub fn take(&mut self, record: &Record<'_>, history: &History) {
        let data: Data = match serde_json::from_str(record.data) {
            Ok(data) => data,
            Err(error) => return history.violation(&format!("record {} is of no wallet: {error}", record.offset)),
        };
        let is_rejected = record.action == "reject";
        let action = if is_rejected { data.action.unwrap_or_default() } else { record.action.to_owned() };
        let state = self.states.entry(data.wallet_id.clone()).or_default();
        let next = if is_rejected {
            *state
        } else {
            State { version: state.version + 1, balance_minor: state.balance_minor + data.amount_minor }
        };
        let told = State { version: data.version, balance_minor: data.balance_minor };
        if told != next || told.balance_minor < 0 || is_rejected != data.reason.is_some() {
            let (offset, text) = (record.offset, record.data);
            history.violation(&format!("W2: record {offset} ({}) follows {state:?}: {text}", record.action));
        }
        *state = told;
        let event = Event {
            wallet: data.wallet_id,
            version: data.version,
            amount_minor: data.amount_minor,
            balance_minor: data.balance_minor,
            counterparty: data.counterparty,
            action,
            reason: data.reason,
        };
        if self.events.insert(data.event_id.clone(), event).is_some() {
            history.violation(&format!("I2: event {} has a second record, {}", data.event_id, record.offset));
        }
    }
}
