//! Users: streamer, consumer, payments, booking, and `libs/process`, which draws the faults.
//!
//! Injected faults. The loop of a process draws the fault of each unit and hands it to `run_once` as an argument. Tests
//! choose the fault themselves, and a process that was started without faults never rolls the dice.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use nix::sys::signal::{Signal, raise};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The flags of a process that can inject faults.
#[derive(Debug, Clone, Args)]
pub struct FaultArgs {
    /// Probability, 0 to 1, that a fault is injected into a batch. 0, the default, injects nothing.
    #[arg(long, env = "FAULT_RATE", default_value_t = 0.0, value_parser = parse_rate)]
    pub fault_rate: f64,

    /// Seed of the random faults: the same seed injects the same faults into a process of the same name. Without it the process
    /// draws one and logs it.
    #[arg(long, env = "FAULT_SEED")]
    pub fault_seed: Option<u64>,
}

/// `FAULT:N`, for example `die-after-publish:3`: inject this fault into every batch from the Nth on. `F` lists the faults
/// of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned<F> {
    /// The fault.
    pub fault: F,
    /// The first batch that it is injected into, counted from 1 since the process started.
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

/// The faults of one process, usually an enum with a variant for "none". `()` stands for a process that injects none.
pub trait Injectable: Copy {
    /// The fault of the next batch, or none, as the dice fall.
    fn roll(dice: &mut Dice) -> Self;

    /// The fault that a button of the live page orders.
    fn ordered() -> Self;
}

impl Injectable for () {
    fn roll(_: &mut Dice) {}

    fn ordered() {}
}

/// Decides batch by batch which fault is injected: the planned one, or else a random one.
#[derive(Debug)]
pub struct FaultSource<F> {
    dice: Dice,
    planned: Option<Planned<F>>,
    drawn_count: u64,
}

impl FaultSource<()> {
    /// Injects nothing.
    pub fn none() -> Self {
        Self::new("", &FaultArgs { fault_rate: 0.0, fault_seed: None }, None)
    }
}

impl<F: Injectable> FaultSource<F> {
    /// Faults of the process `name`, as the flags say.
    pub fn new(name: &str, args: &FaultArgs, planned: Option<Planned<F>>) -> Self {
        Self { dice: Dice::new(name, args), planned, drawn_count: 0 }
    }

    /// The seed of the dice, to be logged at start.
    pub fn seed(&self) -> u64 {
        self.dice.seed()
    }

    /// The fault of the next batch: the planned one from its batch on, before that a random one.
    pub fn draw(&mut self) -> F {
        self.drawn_count += 1;
        match self.planned {
            Some(planned) if self.drawn_count >= planned.batch => planned.fault,
            _ => F::roll(&mut self.dice),
        }
    }
}

/// Ends this process at once, as `kill -9` would: nothing is flushed, closed or logged.
pub fn die() -> ! {
    let _ = raise(Signal::SIGKILL);
    unreachable!("no process survives SIGKILL")
}

/// The random numbers behind the faults. One seed gives one sequence to each name, and another one to each other name: consumers
/// that share a seed must not all crash at the same record.
#[derive(Debug)]
pub struct Dice {
    rate: f64,
    seed: u64,
    rng: StdRng,
}

impl Dice {
    /// The dice of the process `name`, as the flags say.
    pub fn new(name: &str, args: &FaultArgs) -> Self {
        let seed = args.fault_seed.unwrap_or_else(rand::random);
        let mut hasher = DefaultHasher::new();
        (name, seed).hash(&mut hasher);
        Self { rate: args.fault_rate, seed, rng: StdRng::seed_from_u64(hasher.finish()) }
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
        faults_of("streamer", fault_rate, fault_seed)
    }

    fn faults_of(name: &str, fault_rate: f64, fault_seed: Option<u64>) -> Vec<bool> {
        let mut dice = Dice::new(name, &FaultArgs { fault_rate, fault_seed });
        (0..1000).map(|_| dice.strikes()).collect()
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        assert_eq!(faults(0.1, Some(7)), faults(0.1, Some(7)));
        assert_ne!(faults(0.1, Some(7)), faults(0.1, Some(8)));
    }

    #[test]
    fn two_names_throw_different_dice_with_one_seed() {
        assert_ne!(faults_of("consumer0", 0.1, Some(7)), faults_of("consumer1", 0.1, Some(7)));
    }

    #[test]
    fn rate_zero_never_strikes_and_rate_one_always_does() {
        assert!(faults(0.0, None).iter().all(|strikes| !strikes));
        assert!(faults(1.0, None).iter().all(|strikes| *strikes));
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
    enum Mishap {
        None,
        DieAfterLunch,
    }

    impl Injectable for Mishap {
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
        let mut faults = FaultSource::new("", &FaultArgs { fault_rate: 0.0, fault_seed: None }, Some(planned));
        let drawn: Vec<Mishap> = (0..4).map(|_| faults.draw()).collect();
        assert_eq!(drawn, [Mishap::None, Mishap::None, Mishap::DieAfterLunch, Mishap::DieAfterLunch]);
    }

    #[test]
    fn a_plan_that_cannot_be_read_is_refused_with_the_faults_there_are() {
        for bad in ["die-after-lunch", "die-after-lunch:x", "dine:3", ""] {
            let complaint = bad.parse::<Planned<Mishap>>().unwrap_err();
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
