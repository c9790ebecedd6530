//! The ledger of the clients of wallets: every command with its response, and every state that a client saw.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::Value;
use simulator::WalletCommand;
use wallet::WalletId;

use crate::history::History;

/// The wallets. The first is in half of all requests.
const WALLET_COUNT: usize = 8;

/// The wallets of a run, and what clients know of them.
pub(crate) struct Wallets {
    pub ids: Vec<String>,
    pub ledger: Ledger,
}

impl Wallets {
    /// New wallets.
    pub fn new() -> Self {
        let ids = (0..WALLET_COUNT).map(|_| WalletId::new().to_string()).collect();
        Self { ids, ledger: Ledger::default() }
    }

    /// The hot wallet, or any.
    pub fn pick(&self, rng: &mut StdRng) -> &str {
        let number = if rng.random_bool(0.5) { 0 } else { rng.random_range(0..self.ids.len()) };
        &self.ids[number]
    }
}

/// The response to a command that was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The event's id, the version and the balance after it. A rejection does not tell them.
    pub event_id: Option<String>,
    pub version: Option<i64>,
    pub balance_minor: Option<i64>,
    /// Why it was rejected.
    pub rejection: Option<String>,
}

impl Answer {
    /// Reads the body of a response.
    pub fn of(json: &Value) -> Option<Self> {
        let event_id = json["event_id"].as_str().map(str::to_owned);
        let (version, balance_minor) = (json["version"].as_i64(), minor(&json["balance"]));
        // The domain's words follow the words of the endpoint: `failed to handle endpoint="debit": debit of 5 rejected; …`.
        let rejection = json["error"].as_str().and_then(|text| Some(text.split_once("\": ")?.1.to_owned()));
        let is_whole = rejection.is_some() || event_id.is_some() && version.is_some() && balance_minor.is_some();
        is_whole.then_some(Self { event_id, version, balance_minor, rejection })
    }
}

/// A decimal of a body, in cents. Every float up to the largest balance of a run has exact cents.
pub(crate) fn minor(amount: &Value) -> Option<i64> {
    Some((amount.as_f64()? * 100.0).round() as i64)
}

/// The fate of a command.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    /// No final response came. It was decided or not.
    Open,
    /// It was certainly not decided.
    Refused,
    /// It was decided, and this is the response.
    Decided(Answer),
}

/// A command that a client sent.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub command: WalletCommand,
    pub fate: Fate,
}

/// A wallet and a version of it.
pub(crate) type Place = (String, i64);

/// All that clients know, and how many reads came from where.
#[derive(Default)]
pub(crate) struct Ledger {
    seen: Mutex<Seen>,
    redis_count: AtomicU64,
    postgres_count: AtomicU64,
}

/// All that clients sent and saw.
#[derive(Default, Clone)]
pub(crate) struct Seen {
    /// By the id of the trace.
    pub sent: HashMap<u128, Sent>,
    /// The balances that clients saw.
    pub balances: HashMap<Place, i64>,
    /// The events that clients saw: their ids, and their amounts in a list of transactions.
    pub events: HashMap<Place, (String, Option<i64>)>,
    /// The newest version in a response to a command.
    known: HashMap<String, i64>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client sends a command for the first time.
    pub fn begin(&self, trace_id: u128, command: &WalletCommand) {
        self.lock().sent.insert(trace_id, Sent { command: command.clone(), fate: Fate::Open });
    }

    /// A client was told that the command was not decided.
    pub fn refuse(&self, trace_id: u128) {
        if let Some(sent) = self.lock().sent.get_mut(&trace_id) {
            sent.fate = Fate::Refused;
        }
    }

    /// A client got the response.
    pub fn conclude(&self, trace_id: u128, answer: &Answer, history: &History) {
        let mut seen = self.lock();
        let Some(sent) = seen.sent.get_mut(&trace_id) else { return };
        sent.fate = Fate::Decided(answer.clone());
        let wallet = sent.command.wallet.clone();
        if let (None, Some(version), Some(balance_minor), Some(event_id)) =
            (&answer.rejection, answer.version, answer.balance_minor, &answer.event_id)
        {
            seen.saw_event((wallet.clone(), version), event_id, None, history);
            seen.saw_state((wallet.clone(), version), balance_minor, history);
            let known = seen.known.entry(wallet).or_default();
            *known = version.max(*known);
        }
    }

    /// The newest version of the wallet in a response to a command.
    pub fn known_version(&self, wallet: &str) -> i64 {
        self.lock().known.get(wallet).copied().unwrap_or(0)
    }

    /// A client read the balance. Returns the version; `None` if the body is malformed.
    pub fn saw_balance(&self, wallet: &str, json: &Value, history: &History) -> Option<i64> {
        let (version, balance_minor) = (json["version"].as_i64()?, minor(&json["balance"])?);
        self.lock().saw_state((wallet.to_owned(), version), balance_minor, history);
        Some(version)
    }

    /// A client read transactions, newest first. Returns the newest version; `None` if the list is malformed.
    pub fn saw_transactions(&self, wallet: &str, list: &Value, history: &History) -> Option<i64> {
        let mut seen = self.lock();
        let mut newer: Option<i64> = None;
        let list = list.as_array()?;
        for transaction in list {
            let (version, event_id) = (transaction["version"].as_i64()?, transaction["event_id"].as_str()?);
            if newer.is_some_and(|newer| newer != version + 1) {
                history.violation(&format!("W2: version {version} of {wallet} comes after {newer:?} in {list:?}"));
            }
            newer = Some(version);
            seen.saw_event((wallet.to_owned(), version), event_id, Some(minor(&transaction["amount"])?), history);
        }
        Some(list.first().and_then(|newest| newest["version"].as_i64()).unwrap_or(0))
    }

    /// Counts a read by the header `Read-From`.
    pub fn count_read(&self, read_from: Option<&str>) {
        let count = if read_from == Some("redis") { &self.redis_count } else { &self.postgres_count };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// A copy of everything, for the comparison at the end.
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }
}

impl Seen {
    /// A version of a wallet has one balance for ever.
    fn saw_state(&mut self, place: Place, balance_minor: i64, history: &History) {
        let known = *self.balances.entry(place.clone()).or_insert(balance_minor);
        if known != balance_minor {
            history.violation(&format!("W2: {place:?} had balance {known}, and now {balance_minor}"));
        }
    }

    /// A version of a wallet has one event for ever.
    fn saw_event(&mut self, place: Place, event_id: &str, amount_minor: Option<i64>, history: &History) {
        let known = self.events.entry(place.clone()).or_insert_with(|| (event_id.to_owned(), amount_minor));
        known.1 = known.1.or(amount_minor);
        if known.0 != event_id || amount_minor.is_some_and(|amount_minor| known.1 != Some(amount_minor)) {
            history.violation(&format!("W2: {place:?} had event {known:?}, and now {event_id} of {amount_minor:?}"));
        }
    }
}

impl std::fmt::Display for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seen = self.lock();
        let (mut accepted, mut rejected, mut refused, mut open) = (0, 0, 0, 0);
        for sent in seen.sent.values() {
            *match &sent.fate {
                Fate::Decided(answer) if answer.rejection.is_none() => &mut accepted,
                Fate::Decided(_) => &mut rejected,
                Fate::Refused => &mut refused,
                Fate::Open => &mut open,
            } += 1;
        }
        let (redis, postgres) = (self.redis_count.load(Ordering::Relaxed), self.postgres_count.load(Ordering::Relaxed));
        write!(
            f,
            "{accepted} commands for wallets accepted, {rejected} rejected, {refused} refused, {open} of unknown fate; \
             {redis} reads from redis, {postgres} from postgres"
        )
    }
}
