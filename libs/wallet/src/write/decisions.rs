//! Deciding a group of commands in memory: each command meets the states that those before it have left.

use std::collections::HashMap;

use serde::Serialize;

use super::{Command, Outcome};
use crate::id::{EventId, WalletId};
use crate::state::{Action, Event, State, apply, decide, decide_transfer};

/// The decision of a group about one of its commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is an event now, or was one before.
    Done(Outcome),
    /// Its key belongs to another command for this wallet. Nothing was written for it.
    KeyMismatch,
    /// Another session holds this wallet, which the command needs. Nothing was written for it.
    Held(WalletId),
}

/// An event that is to be written.
#[derive(Debug)]
pub(super) struct NewEvent<'a> {
    pub event_id: EventId,
    pub wallet: WalletId,
    /// The state after the event.
    pub state: State,
    pub event: Event,
    /// `None`: the world.
    pub counterparty: Option<WalletId>,
    pub key: Option<&'a str>,
    pub command: &'a Command,
}

impl NewEvent<'_> {
    /// Why it is rejected.
    pub fn reason(&self) -> Option<String> {
        self.event.outcome.err().map(|rejection| rejection.to_string())
    }

    /// The action of its log record.
    pub fn record_action(&self) -> &'static str {
        if self.event.outcome.is_ok() { self.event.action.name() } else { "reject" }
    }

    /// The data of its log record.
    pub fn record_data(&self) -> String {
        let reason = self.reason();
        let data = Data {
            wallet_id: self.wallet.as_str(),
            version: self.state.version,
            event_id: self.event_id.as_str(),
            amount_minor: self.event.amount_minor,
            balance_minor: self.state.balance_minor,
            counterparty: self.counterparty_name(),
            action: reason.as_ref().map(|_| self.event.action.name()),
            reason,
        };
        serde_json::to_string(&data).expect("it has only texts and numbers")
    }

    /// The other wallet, or `world`.
    pub fn counterparty_name(&self) -> &str {
        self.counterparty.as_ref().map_or(WORLD, WalletId::as_str)
    }
}

/// The counterparty of credits and debits.
pub(super) const WORLD: &str = "world";

#[derive(Serialize)]
struct Data<'a> {
    wallet_id: &'a str,
    version: i64,
    event_id: &'a str,
    amount_minor: i64,
    balance_minor: i64,
    counterparty: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The event that belongs to a key.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub action: Action,
    pub amount_minor: i64,
    pub counterparty: Option<WalletId>,
    pub outcome: Outcome,
}

impl Known {
    /// The verdict on another command with the same key.
    fn verdict(&self, command: &Command) -> Verdict {
        let is_same = self.action == command.action
            && self.amount_minor.abs() == command.amount.minor()
            && self.counterparty == command.to;
        let replayed = || Outcome { is_replayed: true, ..self.outcome.clone() };
        if is_same { Verdict::Done(replayed()) } else { Verdict::KeyMismatch }
    }
}

/// The wallets of a group while it is decided.
#[derive(Debug, Default)]
pub(super) struct Ledger<'a> {
    /// The states of the wallets that are locked.
    pub states: HashMap<WalletId, State>,
    /// The newest accepted events of those that have one, as they were before the group.
    pub newest: HashMap<WalletId, EventId>,
    /// The events with the keys of the group, those of the group itself included.
    pub known: HashMap<(WalletId, &'a str), Known>,
    /// In the order of decisions.
    pub events: Vec<NewEvent<'a>>,
}

impl<'a> Ledger<'a> {
    /// Decides the next command.
    pub fn decide(&mut self, command: &'a Command) -> Verdict {
        let key = command.key.as_deref();
        if let Some(known) = key.and_then(|key| self.known.get(&(command.wallet, key))) {
            return known.verdict(command);
        }
        if let Some(held) = command.wallets().find(|wallet| !self.states.contains_key(wallet)) {
            return Verdict::Held(held);
        }
        let state = self.states[&command.wallet];
        let (event, received) = match command.to {
            Some(to) => decide_transfer(state, self.states[&to], command.amount),
            None => (decide(state, command.action, command.amount), None),
        };
        let outcome = self.add(command, command.wallet, event, command.to, key);
        if let Some((to, received)) = command.to.zip(received) {
            self.add(command, to, received, Some(command.wallet), None);
        }
        if let Some(key) = key {
            let known = Known {
                action: event.action,
                amount_minor: event.amount_minor,
                counterparty: command.to,
                outcome: outcome.clone(),
            };
            self.known.insert((command.wallet, key), known);
        }
        Verdict::Done(outcome)
    }

    /// Applies an event. Returns its outcome.
    fn add(
        &mut self,
        command: &'a Command,
        wallet: WalletId,
        event: Event,
        counterparty: Option<WalletId>,
        key: Option<&'a str>,
    ) -> Outcome {
        let state = apply(self.states[&wallet], &event);
        self.states.insert(wallet, state);
        let new = NewEvent { event_id: EventId::new(), wallet, state, event, counterparty, key, command };
        let outcome = Outcome {
            event_id: new.event_id,
            rejection: new.reason(),
            version: state.version,
            balance_minor: state.balance_minor,
            is_replayed: false,
        };
        self.events.push(new);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::amount::Amount;

    const KEYS: [&str; 3] = ["first-key", "second-key", "third-key"];

    fn wallets() -> [WalletId; 3] {
        ["0", "1", "2"].map(|digit| format!("{digit}{}", "0".repeat(26)).parse().unwrap())
    }

    fn command(action: Action, wallet: usize, to: usize, minor: i64, key: Option<&str>) -> Command {
        Command {
            wallet: wallets()[wallet],
            action,
            to: (action == Action::Transfer).then(|| wallets()[to]),
            amount: Amount::from_minor(minor).unwrap(),
            key: key.map(str::to_owned),
            origin_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            traceparent: None,
        }
    }

    fn commands() -> impl Strategy<Value = Vec<Command>> {
        let actions = prop_oneof![Just(Action::Credit), Just(Action::Debit), Just(Action::Transfer)];
        let keys = prop_oneof![3 => Just(None), 1 => (0..3_usize).prop_map(|key| Some(KEYS[key]))];
        let one = (actions, 0..3_usize, 1..3_usize, 1..5_i64, keys).prop_map(|(action, wallet, away, minor, key)| {
            command(action, wallet, (wallet + away) % 3, minor * 100, key)
        });
        vec(one, 1..60)
    }

    fn free() -> Ledger<'static> {
        Ledger { states: wallets().map(|wallet| (wallet, State::default())).into(), ..Ledger::default() }
    }

    /// A verdict without its event id, which is random.
    fn shape(verdict: &Verdict) -> Verdict {
        match verdict {
            Verdict::Done(outcome) => {
                Verdict::Done(Outcome { event_id: "0".repeat(27).parse().unwrap(), ..outcome.clone() })
            }
            other => other.clone(),
        }
    }

    #[test]
    fn a_key_has_one_outcome_and_belongs_to_one_command_of_one_wallet() {
        let same = command(Action::Credit, 0, 0, 500, Some("first-key"));
        let others = [
            command(Action::Credit, 0, 0, 501, Some("first-key")),
            command(Action::Debit, 0, 0, 500, Some("first-key")),
            command(Action::Transfer, 0, 1, 500, Some("first-key")),
        ];
        let elsewhere = command(Action::Credit, 1, 0, 700, Some("first-key"));
        let mut ledger = free();
        let Verdict::Done(first) = ledger.decide(&same) else { panic!("it is decided") };
        assert_eq!(ledger.decide(&same), Verdict::Done(Outcome { is_replayed: true, ..first }));
        for other in &others {
            assert_eq!(ledger.decide(other), Verdict::KeyMismatch, "{other:?}");
        }
        assert!(matches!(ledger.decide(&elsewhere), Verdict::Done(Outcome { is_replayed: false, .. })));
        assert_eq!(ledger.events.len(), 2);
    }

    #[test]
    fn a_rejection_is_replayed_although_it_would_be_accepted_now() {
        let debit = command(Action::Debit, 0, 0, 500, Some("first-key"));
        let credit = command(Action::Credit, 0, 0, 900, None);
        let mut ledger = free();
        let Verdict::Done(rejected) = ledger.decide(&debit) else { panic!("it is decided") };
        assert_eq!(rejected.rejection.as_deref(), Some("debit of 5 rejected; would cause balance of -5 (overdrawn)"));
        ledger.decide(&credit);
        assert_eq!(ledger.decide(&debit), Verdict::Done(Outcome { is_replayed: true, ..rejected }));
    }

    #[test]
    fn a_held_wallet_stops_only_the_commands_that_need_it() {
        let mut ledger = free();
        let [free, held, _] = wallets();
        ledger.states.remove(&held);
        let stopped = [
            command(Action::Credit, 1, 0, 500, None),
            command(Action::Transfer, 0, 1, 500, None),
            command(Action::Transfer, 1, 0, 500, None),
        ];
        for command in &stopped {
            assert_eq!(ledger.decide(command), Verdict::Held(held));
        }
        let credit = command(Action::Credit, 0, 0, 500, None);
        assert!(matches!(ledger.decide(&credit), Verdict::Done(_)));
        assert_eq!(ledger.events.iter().map(|new| new.wallet).collect::<Vec<_>>(), [free]);
    }

    #[test]
    fn a_record_has_the_event_and_a_rejected_one_says_why() {
        let commands = [
            command(Action::Credit, 0, 0, 500, None),
            command(Action::Transfer, 0, 1, 500, None),
            command(Action::Debit, 0, 0, 1, None),
        ];
        let mut ledger = free();
        for command in &commands {
            ledger.decide(command);
        }
        let [zero, one, _] = wallets();
        let records: Vec<(&str, String)> = ledger
            .events
            .iter()
            .map(|new| (new.record_action(), new.record_data().replace(new.event_id.as_str(), "ID")))
            .collect();
        let data = |wallet, version, amount, balance, counterparty: &str, more| {
            format!(
                "{{\"wallet_id\":\"{wallet}\",\"version\":{version},\"event_id\":\"ID\",\"amount_minor\":{amount},\
                 \"balance_minor\":{balance},\"counterparty\":\"{counterparty}\"{more}}}"
            )
        };
        let why = r#","action":"debit","reason":"debit of 0.01 rejected; would cause balance of -0.01 (overdrawn)""#;
        assert_eq!(
            records,
            [
                ("credit", data(zero, 1, 500, 500, "world", "")),
                ("transfer", data(zero, 2, -500, 0, one.as_str(), "")),
                ("transfer", data(one, 1, 500, 500, zero.as_str(), "")),
                ("reject", data(zero, 2, -1, 0, "world", why)),
            ]
        );
    }

    proptest! {
        /// One group of many commands decides as many groups of one command do, each on the events of those before.
        #[test]
        fn a_group_decides_as_its_commands_do_one_by_one(commands in commands()) {
            let mut together = free();
            let verdicts: Vec<Verdict> = commands.iter().map(|command| together.decide(command)).collect();
            let mut alone = free();
            let mut versions = HashMap::new();
            for (command, verdict) in commands.iter().zip(&verdicts) {
                alone = Ledger { events: Vec::new(), ..alone };
                prop_assert_eq!(shape(&alone.decide(command)), shape(verdict));
            }
            prop_assert_eq!(&alone.states, &together.states);
            for new in &together.events {
                let version = versions.entry(new.wallet).or_insert(0);
                *version += i64::from(new.event.outcome.is_ok());
                prop_assert_eq!(new.state.version, *version, "versions are contiguous (W2)");
                prop_assert!(new.state.balance_minor >= 0, "no balance is below 0 (W3)");
            }
        }
    }
}
