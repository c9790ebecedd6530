//! The events of each wallet, one after another: each is decided again on the state of the one before.

use std::fmt;

use tokio_postgres::Row;
use wallet::{Action, Amount, BALANCE_MAX, Event, State, WalletId, apply, decide, decide_transfer, decimal};

/// A row of `wallet_events`.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub wallet_id: String,
    pub event_id: String,
    pub version: i64,
    pub balance_minor: i64,
    pub accepted: bool,
    pub reason: Option<String>,
    pub action: String,
    pub amount_minor: i64,
    pub counterparty: String,
}

impl Attempt {
    pub fn from_row(row: &Row) -> Self {
        Self {
            wallet_id: row.get("wallet_id"),
            event_id: row.get("event_id"),
            version: row.get("version"),
            balance_minor: row.get("balance_minor"),
            accepted: row.get("accepted"),
            reason: row.get("reason"),
            action: row.get("action"),
            amount_minor: row.get("amount_minor"),
            counterparty: row.get("counterparty"),
        }
    }

    /// Decides it again on this state.
    fn decide(&self, state: State) -> Result<Event, String> {
        let amount = self.amount_minor.checked_abs().unwrap_or_default();
        let amount = Amount::from_minor(amount).map_err(|error| format!("its amount {error}"))?;
        let is_world = self.counterparty == "world";
        match (self.action.as_str(), self.amount_minor > 0) {
            ("credit", true) if is_world => Ok(decide(state, Action::Credit, amount)),
            ("debit", false) if is_world => Ok(decide(state, Action::Debit, amount)),
            ("transfer", _) if self.counterparty.parse::<WalletId>().is_err() => {
                Err(format!("its counterparty {} is no wallet", self.counterparty))
            }
            ("transfer", _) if self.counterparty == self.wallet_id => Err("it is a transfer to itself".to_owned()),
            // The other wallet has an event of its own, where its side is decided again.
            ("transfer", false) => Ok(decide_transfer(state, State::default(), amount).0),
            ("transfer", true) => {
                let (paid, received) = decide_transfer(State { version: 0, balance_minor: BALANCE_MAX }, state, amount);
                Ok(received.unwrap_or(Event { amount_minor: amount.minor(), ..paid }))
            }
            (action, _) => Err(format!(
                "a {action} of {} cents with {} is none that the api writes",
                self.amount_minor, self.counterparty
            )),
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wallet_id, event_id, version, .. } = self;
        write!(out, "wallet {wallet_id}, version {version}, event {event_id}")
    }
}

/// A transfer that was rejected although its payer could pay. The receiver may have had too much.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Doubt {
    pub payer: State,
    pub receiver: String,
    pub amount: Amount,
    pub reason: String,
}

/// The sums of all wallets.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sums {
    /// The balances.
    pub balance_minor: i128,
    /// The accepted credits less the accepted debits.
    pub world_minor: i128,
}

/// Follows the events, ordered by wallet and version; at one version the accepted event comes first.
#[derive(Debug, Default)]
pub(super) struct Chain {
    wallet_id: String,
    state: State,
    sums: Sums,
}

impl Chain {
    /// Takes the next event. Hands each difference to `differ`.
    pub fn take(&mut self, attempt: &Attempt, mut differ: impl FnMut(String)) -> Option<Doubt> {
        if attempt.wallet_id != self.wallet_id {
            self.sums.balance_minor += i128::from(self.state.balance_minor);
            self.wallet_id.clone_from(&attempt.wallet_id);
            self.state = State::default();
        }
        if attempt.balance_minor < 0 {
            differ(format!("{attempt}: its balance is below 0 (W3)"));
        }
        let before = self.state;
        if attempt.accepted {
            // From here on the wallet is followed as the event has it, so that each difference is told once.
            self.state = State { version: attempt.version, balance_minor: attempt.balance_minor };
            if attempt.counterparty == "world" {
                self.sums.world_minor += i128::from(attempt.amount_minor);
            }
            if attempt.version != before.version + 1 {
                differ(format!("{attempt}: the event before it is of version {} (W2)", before.version));
                return None;
            }
        } else if attempt.version != before.version {
            differ(format!("{attempt}: it was rejected, and the wallet had version {} (W2)", before.version));
            return None;
        }
        self.judge(before, attempt, &mut differ)
    }

    /// Compares the event with the decision on the state before it.
    fn judge(&self, before: State, attempt: &Attempt, differ: &mut impl FnMut(String)) -> Option<Doubt> {
        // A balance out of range was told at its own event.
        let before = State { balance_minor: before.balance_minor.clamp(0, BALANCE_MAX), ..before };
        let decided = match attempt.decide(before) {
            Ok(event) => event,
            Err(error) => {
                differ(format!("{attempt}: {error}"));
                return None;
            }
        };
        let after = if attempt.accepted { apply(before, &Event { outcome: Ok(()), ..decided }) } else { before };
        if attempt.balance_minor != after.balance_minor {
            differ(format!(
                "{attempt}: its balance is {}, and by the event before it should be {} (W2)",
                decimal(attempt.balance_minor),
                decimal(after.balance_minor)
            ));
        }
        let is_transfer = attempt.action == Action::Transfer.name();
        match (&attempt.reason, decided.outcome) {
            (None, Ok(())) => {}
            (None, Err(rejection)) => {
                differ(format!("{attempt}: it was accepted, and should be rejected: {rejection}"))
            }
            (Some(_), _) if is_transfer && attempt.amount_minor > 0 => {
                differ(format!("{attempt}: a rejected transfer has no event at the receiving wallet"));
            }
            (Some(reason), Err(rejection)) if *reason == rejection.to_string() => {}
            (Some(reason), Err(rejection)) => {
                differ(format!("{attempt}: it was rejected ({reason}), and should be rejected: {rejection}"));
            }
            (Some(reason), Ok(())) if is_transfer => {
                let amount = Amount::from_minor(-decided.amount_minor).expect("it was decided");
                let (receiver, reason) = (attempt.counterparty.clone(), reason.clone());
                return Some(Doubt { payer: before, receiver, amount, reason });
            }
            (Some(reason), Ok(())) => differ(format!("{attempt}: it was rejected ({reason}), and should be accepted")),
        }
        None
    }

    /// The sums of all wallets.
    pub fn finish(self) -> Sums {
        Sums { balance_minor: self.sums.balance_minor + i128::from(self.state.balance_minor), ..self.sums }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYER: &str = "000000000000000000000000000";
    const RECEIVER: &str = "28skwt5B8zTrs6AqBWrSgCHLcRL";

    fn attempt(version: i64, balance_minor: i64, action: &str, amount_minor: i64) -> Attempt {
        Attempt {
            wallet_id: PAYER.to_owned(),
            event_id: RECEIVER.to_owned(),
            version,
            balance_minor,
            accepted: true,
            reason: None,
            action: action.to_owned(),
            amount_minor,
            counterparty: if action == "transfer" { RECEIVER } else { "world" }.to_owned(),
        }
    }

    fn rejected(reason: &str, attempt: Attempt) -> Attempt {
        Attempt { accepted: false, reason: Some(reason.to_owned()), ..attempt }
    }

    /// The differences of these events, without the name of the event, and the last doubt.
    fn follow(attempts: &[Attempt]) -> (Vec<String>, Option<Doubt>) {
        let (mut chain, mut found, mut doubt) = (Chain::default(), Vec::new(), None);
        for attempt in attempts {
            let told = |what: String| found.push(what.split_once(": ").unwrap().1.to_owned());
            doubt = chain.take(attempt, told).or(doubt);
        }
        (found, doubt)
    }

    #[test]
    fn true_events_have_no_difference_and_are_summed() {
        let overdrawn = "debit of 5 rejected; would cause balance of -5 (overdrawn)";
        let mut chain = Chain::default();
        for attempt in [
            rejected(overdrawn, attempt(0, 0, "debit", -500)),
            attempt(1, 500, "credit", 500),
            attempt(2, 300, "transfer", -200),
            attempt(3, 299, "debit", -1),
            Attempt {
                wallet_id: RECEIVER.to_owned(),
                counterparty: PAYER.to_owned(),
                ..attempt(1, 200, "transfer", 200)
            },
        ] {
            assert_eq!(chain.take(&attempt, |what| panic!("{what}")), None);
        }
        assert_eq!(chain.finish(), Sums { balance_minor: 499, world_minor: 499 });
    }

    #[test]
    fn each_false_event_is_told_once() {
        let first = || attempt(1, 500, "credit", 500);
        let overdrawn = "debit of 6 rejected; would cause balance of -1 (overdrawn)";
        let cases = [
            (attempt(3, 600, "credit", 100), "the event before it is of version 1 (W2)"),
            (attempt(2, 601, "credit", 100), "its balance is 6.01, and by the event before it should be 6.00 (W2)"),
            (attempt(2, 0, "debit", -600), "its balance is 0.00, and by the event before it should be -1.00 (W2)"),
            (attempt(2, 400, "credit", -100), "a credit of -100 cents with world is none that the api writes"),
            (attempt(2, 500, "debit", 0), "its amount must be greater than 0"),
            (rejected(overdrawn, attempt(2, 500, "debit", -600)), "it was rejected, and the wallet had version 1 (W2)"),
            (
                rejected(overdrawn, attempt(1, 500, "debit", -500)),
                "it was rejected (debit of 6 rejected; would cause balance of -1 (overdrawn)), and should be accepted",
            ),
            (
                rejected("no", attempt(1, 500, "debit", -600)),
                "it was rejected (no), and should be rejected: debit of 6 rejected; would cause balance of -1 (overdrawn)",
            ),
            (
                rejected("no", attempt(1, 500, "transfer", 100)),
                "a rejected transfer has no event at the receiving wallet",
            ),
            (
                Attempt { counterparty: PAYER.to_owned(), ..attempt(2, 400, "transfer", -100) },
                "it is a transfer to itself",
            ),
        ];
        for (attempt, difference) in cases {
            let (found, doubt) = follow(&[first(), attempt.clone()]);
            assert_eq!((found.first().map(String::as_str), doubt), (Some(difference), None), "{attempt:?}");
        }
        let (found, _) = follow(&[first(), attempt(2, -100, "debit", -600)]);
        let lines = [
            "its balance is below 0 (W3)",
            "it was accepted, and should be rejected: debit of 6 rejected; would cause balance of -1 (overdrawn)",
        ];
        assert_eq!(found, lines);
    }

    #[test]
    fn a_rejected_transfer_of_a_payer_who_could_pay_is_doubtful() {
        let (found, doubt) =
            follow(&[attempt(1, 500, "credit", 500), rejected("too much", attempt(1, 500, "transfer", -100))]);
        let payer = State { version: 1, balance_minor: 500 };
        let amount = Amount::from_minor(100).unwrap();
        assert_eq!(found, [""; 0]);
        assert_eq!(doubt, Some(Doubt { payer, receiver: RECEIVER.to_owned(), amount, reason: "too much".to_owned() }));
    }
}
