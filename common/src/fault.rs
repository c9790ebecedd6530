//! Injected faults. Users: streamer, consumer. What strikes is drawn in `run` and handed to `run_once` as an argument, so
//! that tests choose and production never throws the dice.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use nix::sys::signal::{Signal, raise};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The flags of every process that can inject faults.
#[derive(Debug, Clone, Args)]
pub struct FaultArgs {
    /// Probability, 0 to 1, that a fault is injected into a batch. 0, the default, injects nothing.
    #[arg(long, env = "FAULT_RATE", default_value_t = 0.0, value_parser = parse_rate)]
    pub fault_rate: f64,

    /// Seed of the dice; the same seed throws the same faults. Without it one is drawn and printed.
    #[arg(long, env = "FAULT_SEED")]
    pub fault_seed: Option<u64>,
}

/// `FAULT:N`, for example `die-after-publish:3`: inject this fault into every batch from the Nth on. `F` lists the faults
/// of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned<F> {
    /// What goes wrong.
    pub fault: F,
    /// The first batch in which it does, counted from 1 since the process started.
    pub batch: u64,
}

impl<F: ValueEnum> FromStr for Planned<F> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let planned = text.split_once(':').and_then(|(fault, batch)| {
            Some(Self { fault: F::from_str(fault, false).ok()?, batch: batch.parse().ok()? })
        });
        planned.ok_or_else(|| {
            let names: Vec<String> = F::value_variants()
                .iter()
                .filter_map(|fault| Some(fault.to_possible_value()?.get_name().to_owned()))
                .collect();
            format!("give FAULT:N, with one of {}", names.join(", "))
        })
    }
}

/// A fault of one process. `()` is the fault of a process that injects none.
pub trait Fault: Copy {
    /// The fault of a batch, as the dice say.
    fn roll(dice: &mut Dice) -> Self;

    /// The fault that a person orders by a button of the live page.
    fn ordered() -> Self;
}

impl Fault for () {
    fn roll(_: &mut Dice) {}

    fn ordered() {}
}

/// Decides batch by batch what goes wrong: what was planned, or else what the dice say.
#[derive(Debug)]
pub struct Faults<F> {
    dice: Dice,
    planned: Option<Planned<F>>,
    drawn_count: u64,
}

impl Faults<()> {
    /// No faults at all.
    pub fn none() -> Self {
        Self::new(&FaultArgs { fault_rate: 0.0, fault_seed: None }, None)
    }
}

impl<F: Fault> Faults<F> {
    /// Faults as the flags want them.
    pub fn new(args: &FaultArgs, planned: Option<Planned<F>>) -> Self {
        Self { dice: Dice::new(args), planned, drawn_count: 0 }
    }

    /// The seed of the dice, to be logged at start.
    pub fn seed(&self) -> u64 {
        self.dice.seed()
    }

    /// The fault of the next batch: the planned one from its batch on, else what the dice say.
    pub fn draw(&mut self) -> F {
        self.drawn_count += 1;
        match self.planned {
            Some(planned) if self.drawn_count >= planned.batch => planned.fault,
            _ => F::roll(&mut self.dice),
        }
    }
}

/// Ends this process as `kill -9` would, here and now: nothing is flushed, closed or said.
pub fn die() -> ! {
    let _ = raise(Signal::SIGKILL);
    unreachable!("nobody survives SIGKILL")
}

/// Decides whether something goes wrong.
#[derive(Debug)]
pub struct Dice {
    rate: f64,
    seed: u64,
    rng: StdRng,
}

impl Dice {
    /// Dice as the flags want them.
    pub fn new(args: &FaultArgs) -> Self {
        let seed = args.fault_seed.unwrap_or_else(rand::random);
        Self { rate: args.fault_rate, seed, rng: StdRng::seed_from_u64(seed) }
    }

    /// The seed in use, to be logged at start.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// True with the probability of the fault rate.
    pub fn strikes(&mut self) -> bool {
        self.rate > 0.0 && self.rng.random_bool(self.rate)
    }

    /// True or false, evenly.
    pub fn coin(&mut self) -> bool {
        self.rng.random_bool(0.5)
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.0..=1.0).contains(&rate) => Ok(rate),
        _ => Err("give a probability between 0 and 1, for example 0.10".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(fault_rate: f64, fault_seed: Option<u64>) -> Vec<bool> {
        let mut dice = Dice::new(&FaultArgs { fault_rate, fault_seed });
        (0..1000).map(|_| dice.strikes()).collect()
    }

    #[test]
    fn one_seed_throws_one_sequence() {
        assert_eq!(faults(0.1, Some(7)), faults(0.1, Some(7)));
        assert_ne!(faults(0.1, Some(7)), faults(0.1, Some(8)));
    }

    #[test]
    fn rate_zero_never_strikes_and_rate_one_always_does() {
        assert!(faults(0.0, None).iter().all(|strikes| !strikes));
        assert!(faults(1.0, None).iter().all(|strikes| *strikes));
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
    enum Trouble {
        None,
        DieAfterLunch,
    }

    impl Fault for Trouble {
        fn roll(_: &mut Dice) -> Self {
            Self::None
        }

        fn ordered() -> Self {
            Self::DieAfterLunch
        }
    }

    #[test]
    fn a_planned_fault_strikes_from_its_batch_on() {
        let planned = "die-after-lunch:3".parse().unwrap();
        let mut faults = Faults::new(&FaultArgs { fault_rate: 0.0, fault_seed: None }, Some(planned));
        let drawn: Vec<Trouble> = (0..4).map(|_| faults.draw()).collect();
        assert_eq!(drawn, [Trouble::None, Trouble::None, Trouble::DieAfterLunch, Trouble::DieAfterLunch]);
    }

    #[test]
    fn a_plan_that_is_none_is_told_what_there_is() {
        for bad in ["die-after-lunch", "die-after-lunch:x", "dine:3", ""] {
            let complaint = bad.parse::<Planned<Trouble>>().unwrap_err();
            assert_eq!(complaint, "give FAULT:N, with one of none, die-after-lunch", "{bad}");
        }
    }

    #[test]
    fn only_probabilities_are_rates() {
        assert_eq!(parse_rate("0.10"), Ok(0.1));
        for bad in ["-0.1", "1.1", "NaN", "ten"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }
}
