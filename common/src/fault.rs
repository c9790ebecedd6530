//! Dice for injected faults. Users: streamer, consumer. The dice are thrown in `run`; what they decide is handed to
//! `run_once` as an argument, so that tests choose and production never throws.

use clap::Args;
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

/// Decides, batch by batch, whether something goes wrong.
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

    #[test]
    fn only_probabilities_are_rates() {
        assert_eq!(parse_rate("0.10"), Ok(0.1));
        for bad in ["-0.1", "1.1", "NaN", "ten"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }
}
