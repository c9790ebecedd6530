//! The effects of a group on its wallets, for the read model.

use std::collections::HashMap;

use jiff::Timestamp;

use super::decisions::NewEvent;
use crate::documents::{Change, Transaction};
use crate::id::{EventId, WalletId};

/// One change per wallet that was changed. `before` has the newest accepted event of each wallet before the group; `times` has
/// the time of each event.
pub(super) fn changes(
    events: &[NewEvent<'_>],
    times: impl Iterator<Item = Timestamp>,
    before: &HashMap<WalletId, EventId>,
) -> Vec<Change> {
    let mut changes: HashMap<WalletId, Change> = HashMap::new();
    for (new, timestamp) in events.iter().zip(times).filter(|(new, _)| new.event.outcome.is_ok()) {
        let change = changes.entry(new.wallet).or_insert_with(|| Change {
            wallet: new.wallet,
            before: before.get(&new.wallet).copied(),
            balance_minor: 0,
            transactions: Vec::new(),
        });
        change.balance_minor = new.state.balance_minor;
        change.transactions.push(Transaction {
            timestamp,
            counterparty: new.counterparty,
            amount_minor: new.event.amount_minor,
            version: new.state.version,
            event_id: new.event_id,
        });
    }
    let newest_first = |mut change: Change| {
        change.transactions.reverse();
        change
    };
    changes.into_values().map(newest_first).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::amount::Amount;
    use crate::state::{Action, State};
    use crate::write::Command;
    use crate::write::decisions::Ledger;

    #[test]
    fn a_change_has_the_accepted_events_of_one_wallet_and_the_event_before_them() {
        let (old, new) = (WalletId::new(), WalletId::new());
        let command = |wallet, action, minor| Command {
            wallet,
            action,
            to: None,
            amount: Amount::from_minor(minor).unwrap(),
            key: None,
            origin_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            traceparent: None,
        };
        let commands = [
            command(old, Action::Debit, 100),
            command(old, Action::Debit, 500),
            command(new, Action::Debit, 1),
            command(old, Action::Credit, 50),
        ];
        let states = HashMap::from([(old, State { version: 7, balance_minor: 300 }), (new, State::default())]);
        let mut ledger = Ledger { states, ..Ledger::default() };
        for command in &commands {
            ledger.decide(command);
        }
        let before = EventId::new();
        let times = (0..).map(|second| Timestamp::from_second(second).unwrap());
        let changes = changes(&ledger.events, times, &HashMap::from([(old, before)]));
        let [change] = changes.as_slice() else { panic!("the other wallet only rejects: {changes:?}") };
        assert_eq!((change.wallet, change.before, change.balance_minor), (old, Some(before), 250));
        let transactions: Vec<_> = change
            .transactions
            .iter()
            .map(|one| (one.version, one.amount_minor, one.timestamp.as_second(), one.event_id))
            .collect();
        let [first, _, _, last] = ledger.events.as_slice() else { panic!("each command is an event") };
        assert_eq!(transactions, [(9, 50, 3, last.event_id), (8, -100, 0, first.event_id)]);
    }
}
