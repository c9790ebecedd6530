//! How fast wallets are written and read.

use std::collections::BTreeMap;

use crate::rate::Rate;
use crate::sample::{Process, Told, Wallets};

/// Counts of earlier samples.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    accepted: Rate,
    rejected: Rate,
    /// By process: reads from Redis, and from Postgres. Each process counts from 0 after a restart.
    reads: BTreeMap<String, [Rate; 2]>,
}

impl Rates {
    /// Adds the rates to a sample. Postgres counts the commands, and each api its reads.
    pub fn fill(&mut self, at_ms: u64, wallets: &mut Wallets, processes: &[Process]) {
        if let Some(money) = wallets.money.as_ref().filter(|_| wallets.problem.is_none()) {
            wallets.accepted_per_s = self.accepted.after(money.at_ms, money.accepted_count);
            wallets.rejected_per_s = self.rejected.after(money.at_ms, money.rejected_count);
        }
        let mut sums = [None, None];
        for process in processes {
            let Some(counts) = process.wallet_reads else { continue };
            let rates = self.reads.entry(process.name.clone()).or_default();
            for ((sum, rate), count) in sums.iter_mut().zip(rates).zip([counts.redis, counts.postgres]) {
                if let Some(per_s) = rate.after(at_ms, count as i64) {
                    *sum = Some(sum.unwrap_or(0.0) + per_s);
                }
            }
        }
        let is_rebuilding = processes.iter().filter_map(|process| process.is_rebuilding).max();
        let [redis_reads_per_s, postgres_reads_per_s] = sums;
        wallets.told = Told { redis_reads_per_s, postgres_reads_per_s, is_rebuilding };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Money, WalletReads};

    fn api(name: &str, redis: f64, postgres: f64) -> Process {
        Process { name: name.to_owned(), wallet_reads: Some(WalletReads { redis, postgres }), ..Process::default() }
    }

    fn told(rates: &mut Rates, at_ms: u64, processes: &[Process]) -> (Option<f64>, Option<f64>) {
        let mut wallets = Wallets::default();
        rates.fill(at_ms, &mut wallets, processes);
        (wallets.told.redis_reads_per_s, wallets.told.postgres_reads_per_s)
    }

    #[test]
    fn the_reads_of_all_processes_are_added_and_a_restart_is_no_burst() {
        let mut rates = Rates::default();
        assert_eq!(told(&mut rates, 1000, &[]), (None, None), "no process counts reads");
        assert_eq!(told(&mut rates, 2000, &[api("a", 100.0, 7.0), api("b", 1e6, 0.0)]), (None, None));
        let both = [api("a", 150.0, 7.0), api("b", 1e6 + 10.0, 4.0)];
        assert_eq!(told(&mut rates, 3000, &both), (Some(60.0), Some(4.0)));
        let restarted = [api("a", 170.0, 7.0), api("b", 0.0, 0.0)];
        assert_eq!(told(&mut rates, 4000, &restarted), (Some(35.0), Some(0.0)), "b is counted anew");
        let streamer = Process { name: "streamer".to_owned(), ..Process::default() };
        assert_eq!(told(&mut rates, 5000, &[streamer]), (None, None), "both are away");
    }

    #[test]
    fn the_commands_of_a_count_that_is_old_have_no_rate() {
        let money = |at_ms, accepted_count| Money {
            at_ms,
            took_ms: 1.0,
            wallet_count: 1,
            accepted_count,
            rejected_count: 5,
            balances: "1.00".to_owned(),
            from_world: "1.00".to_owned(),
            adds_up: true,
        };
        let mut rates = Rates::default();
        let mut after = |at_ms, accepted_count, problem| {
            let mut wallets = Wallets { money: Some(money(at_ms, accepted_count)), problem, ..Wallets::default() };
            rates.fill(at_ms, &mut wallets, &[]);
            (wallets.accepted_per_s, wallets.rejected_per_s)
        };
        assert_eq!(after(1000, 10, None), (None, None));
        assert_eq!(after(2000, 30, None), (Some(20.0), Some(0.0)));
        assert_eq!(after(2000, 30, Some("Postgres does not answer.")), (None, None));
    }
}
