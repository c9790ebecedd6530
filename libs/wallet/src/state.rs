//! The decisions: which attempt is accepted, and the state after it.

use std::fmt;

use crate::amount::{Amount, short};

/// The largest balance, in cents: 2^53 - 1, which every reader of JSON can hold.
pub const BALANCE_MAX: i64 = 9_007_199_254_740_991;

/// The state of a wallet. The default is that of a wallet that was never used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// The number of accepted events.
    pub version: i64,
    /// In cents, never below 0 (W3).
    pub balance_minor: i64,
}

/// The kind of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Money comes from the world.
    Credit,
    /// Money goes to the world.
    Debit,
    /// Money goes from one wallet to another. Each of both has an event.
    Transfer,
}

impl Action {
    /// The action of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Credit, Self::Debit, Self::Transfer].into_iter().find(|action| action.name() == name)
    }

    /// The word for it in the events, in the log and in the paths of the api.
    pub fn name(self) -> &'static str {
        match self {
            Self::Credit => "credit",
            Self::Debit => "debit",
            Self::Transfer => "transfer",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// Why an attempt is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The wallet has too little.
    #[error("{action} of {amount} rejected; would cause balance of {} (overdrawn)", short(*balance_minor))]
    Overdrawn {
        /// The kind of the command.
        action: Action,
        /// How much.
        amount: Amount,
        /// The balance that there would be, in cents.
        balance_minor: i64,
    },
    /// A wallet would have more than [`BALANCE_MAX`].
    #[error("{action} of {amount} rejected; would cause balance of {} (at most {})", short(*balance_minor), short(BALANCE_MAX))]
    TooMuch {
        /// The kind of the command.
        action: Action,
        /// How much.
        amount: Amount,
        /// The balance that there would be, in cents.
        balance_minor: i64,
    },
}

/// One attempt at one wallet, decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The kind of the command.
    pub action: Action,
    /// In cents; negative if it takes money from the wallet.
    pub amount_minor: i64,
    /// Whether it was accepted.
    pub outcome: Result<(), Rejection>,
}

/// Decides a credit or a debit.
///
/// # Panics
/// It is a transfer: see [`decide_transfer`].
pub fn decide(state: State, action: Action, amount: Amount) -> Event {
    let amount_minor = match action {
        Action::Credit => amount.minor(),
        Action::Debit => -amount.minor(),
        Action::Transfer => panic!("a transfer is decided for both wallets at once"),
    };
    Event { action, amount_minor, outcome: check(state, action, amount, amount_minor) }
}

/// Decides a transfer. Returns the event of the paying wallet and, if it is accepted, that of the receiving one.
pub fn decide_transfer(payer: State, receiver: State, amount: Amount) -> (Event, Option<Event>) {
    let (action, minor) = (Action::Transfer, amount.minor());
    let outcome = check(payer, action, amount, -minor).and_then(|()| check(receiver, action, amount, minor));
    let received = Event { action, amount_minor: minor, outcome };
    (Event { action, amount_minor: -minor, outcome }, outcome.is_ok().then_some(received))
}

fn check(state: State, action: Action, amount: Amount, amount_minor: i64) -> Result<(), Rejection> {
    // Both are far below the limits of 64 bits.
    let balance_minor = state.balance_minor + amount_minor;
    match balance_minor {
        ..0 => Err(Rejection::Overdrawn { action, amount, balance_minor }),
        0..=BALANCE_MAX => Ok(()),
        _ => Err(Rejection::TooMuch { action, amount, balance_minor }),
    }
}

/// The state after an event. A rejected one leaves it as it was.
pub fn apply(state: State, event: &Event) -> State {
    match event.outcome {
        Ok(()) => State { version: state.version + 1, balance_minor: state.balance_minor + event.amount_minor },
        Err(_) => state,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::amount::AMOUNT_MAX;

    fn amount(minor: i64) -> Amount {
        Amount::from_minor(minor).unwrap()
    }

    #[test]
    fn a_debit_of_all_is_accepted_and_one_cent_more_is_not() {
        let state = State { version: 7, balance_minor: 500 };
        let all = decide(state, Action::Debit, amount(500));
        assert_eq!(apply(state, &all), State { version: 8, balance_minor: 0 });
        let more = decide(state, Action::Debit, amount(501));
        assert_eq!(apply(state, &more), state);
        let reason = more.outcome.unwrap_err().to_string();
        assert_eq!(reason, "debit of 5.01 rejected; would cause balance of -0.01 (overdrawn)");
        let reason = decide(State::default(), Action::Debit, amount(500)).outcome.unwrap_err().to_string();
        assert_eq!(reason, "debit of 5 rejected; would cause balance of -5 (overdrawn)");
    }

    #[test]
    fn a_balance_is_filled_to_the_brim_and_no_further() {
        let state = State { version: 1, balance_minor: BALANCE_MAX - 1 };
        assert_eq!(apply(state, &decide(state, Action::Credit, amount(1))).balance_minor, BALANCE_MAX);
        let reason = decide(state, Action::Credit, amount(2)).outcome.unwrap_err().to_string();
        assert_eq!(
            reason,
            "credit of 0.02 rejected; would cause balance of 90071992547409.92 (at most 90071992547409.91)"
        );
        let (paid, received) = decide_transfer(State { version: 1, balance_minor: 2 }, state, amount(2));
        assert!(paid.outcome.is_err() && received.is_none(), "the receiver has no room");
    }

    /// A command for one of three wallets, as a naive model does it: on a list of decimal texts.
    #[derive(Debug, Clone, Copy)]
    struct Step {
        action: Action,
        wallet: usize,
        other: usize,
        minor: i64,
    }

    fn step() -> impl Strategy<Value = Step> {
        let actions = prop_oneof![Just(Action::Credit), Just(Action::Debit), Just(Action::Transfer)];
        let minors = prop_oneof![1..1000_i64, Just(AMOUNT_MAX)];
        (actions, 0..3_usize, 1..3_usize, minors).prop_map(|(action, wallet, away, minor)| Step {
            action,
            wallet,
            other: (wallet + away) % 3,
            minor,
        })
    }

    proptest! {
        /// The naive model keeps what each wallet and the world has. All of it sums to zero at any time (W4).
        #[test]
        fn decisions_agree_with_a_naive_model_and_money_is_conserved(steps in vec(step(), 1..200)) {
            let mut states = [State::default(); 3];
            let mut naive = [0_i128; 3];
            let mut accepted = [0_i64; 3];
            let mut world = 0_i128;
            for Step { action, wallet, other, minor } in steps {
                let (event, second) = match action {
                    Action::Transfer => decide_transfer(states[wallet], states[other], amount(minor)),
                    action => (decide(states[wallet], action, amount(minor)), None),
                };
                let (from, to) = match action {
                    Action::Credit => (None, Some(wallet)),
                    Action::Debit => (Some(wallet), None),
                    Action::Transfer => (Some(wallet), Some(other)),
                };
                let may = from.is_none_or(|from| naive[from] >= i128::from(minor))
                    && to.is_none_or(|to| naive[to] + i128::from(minor) <= i128::from(BALANCE_MAX));
                prop_assert_eq!(event.outcome.is_ok(), may);
                prop_assert_eq!(second.is_some(), may && action == Action::Transfer);
                if may {
                    for (place, sign) in [(from, -1), (to, 1)] {
                        match place {
                            Some(place) => { naive[place] += sign * i128::from(minor); accepted[place] += 1; }
                            None => world += sign * i128::from(minor),
                        }
                    }
                }
                states[wallet] = apply(states[wallet], &event);
                if let Some(second) = second {
                    states[other] = apply(states[other], &second);
                }
                prop_assert_eq!(states.map(|state| i128::from(state.balance_minor)), naive);
                prop_assert_eq!(states.map(|state| state.version), accepted);
                prop_assert_eq!(naive.iter().sum::<i128>() + world, 0);
            }
        }
    }
}
