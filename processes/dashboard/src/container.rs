//! Puts the figures of all watched containers together, and works out how fast they grow.

use std::collections::{BTreeMap, BTreeSet};

use crate::rate::Rate;
use crate::sample::{Container, ContainerCounts, DestinationCounts, DestinationLine, Process};

const NEVER_TOLD: &str = "No container is watched (DASHBOARD_WATCH), or none has answered yet.";
const AWAY: &str = "The container does not answer. What it has accepted waits in its spool.";

/// The containers of earlier samples.
#[derive(Debug, Default)]
pub(crate) struct Containers {
    /// By process and figure. Each process counts from 0 after a restart.
    rates: BTreeMap<(String, String), Rate>,
    last: Container,
}

impl Containers {
    /// The figures after one more sample of the processes.
    pub fn after(&mut self, at_ms: u64, processes: &[Process]) -> Container {
        let told: Vec<(&str, &ContainerCounts)> =
            processes.iter().filter_map(|one| Some((one.name.as_str(), one.container.as_ref()?))).collect();
        if told.is_empty() {
            let problem = Some(if self.last.at_ms.is_some() { AWAY } else { NEVER_TOLD });
            return Container { problem, ..self.last.clone() };
        }
        let mut rate = |figure: &str, count: &dyn Fn(&ContainerCounts) -> f64| {
            let mut sum = None;
            for (name, counts) in &told {
                let rate = self.rates.entry(((*name).to_owned(), figure.to_owned())).or_default();
                if let Some(per_s) = rate.after(at_ms, count(counts) as i64) {
                    sum = Some(sum.unwrap_or(0.0) + per_s);
                }
            }
            sum
        };
        let mut verdicts = |state: &str| rate(state, &|counts| counts.verdicts.get(state).copied().unwrap_or(0.0));
        let (committed_per_s, rejected_per_s) = (verdicts("committed"), verdicts("rejected"));
        let failed_per_s = verdicts("fail_queued");
        let accepted_per_s = rate("accepted", &|counts| counts.accepted);
        let names: BTreeSet<&String> = told.iter().flat_map(|(_, counts)| counts.destinations.keys()).collect();
        let destinations = names.into_iter().map(|name| {
            let all = || told.iter().filter_map(|(_, counts)| counts.destinations.get(name));
            let of = |counts: &ContainerCounts| -> DestinationCounts {
                counts.destinations.get(name).copied().unwrap_or_default()
            };
            DestinationLine {
                name: name.clone(),
                is_open: all().any(|counts| counts.is_open),
                waiting: all().map(|counts| counts.waiting).fold(0.0, f64::max),
                stored_per_s: rate(&format!("{name} stored"), &|counts| of(counts).stored),
                failed_per_s: rate(&format!("{name} failed"), &|counts| of(counts).failed),
            }
        });
        let destinations = destinations.collect();
        let most =
            |figure: fn(&ContainerCounts) -> f64| told.iter().map(|(_, counts)| figure(counts)).fold(0.0, f64::max);
        // Every container reads the units of the same table. Each has a spool of its own, or all share one.
        let mut units = BTreeMap::new();
        for (state, count) in told.iter().flat_map(|(_, counts)| &counts.units) {
            let most = units.entry(state.clone()).or_insert(0.0);
            *most = f64::max(*most, *count);
        }
        let free = told.iter().map(|(_, counts)| counts.spool_free_ratio).fold(1.0, f64::min);
        self.last = Container {
            problem: None,
            at_ms: Some(at_ms),
            units,
            oldest_s: most(|counts| counts.oldest_s),
            spool_files: most(|counts| counts.spool_files),
            spool_free_ratio: free,
            destinations,
            ..Container::default()
        };
        Container { accepted_per_s, committed_per_s, rejected_per_s, failed_per_s, ..self.last.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, accepted: f64, waiting: f64, is_open: bool) -> Process {
        let notices = DestinationCounts { is_open, waiting, stored: accepted, failed: 0.0 };
        let counts = ContainerCounts {
            accepted,
            verdicts: BTreeMap::from([("committed".to_owned(), accepted)]),
            units: BTreeMap::from([("queued".to_owned(), waiting)]),
            spool_free_ratio: if is_open { 0.25 } else { 0.5 },
            destinations: BTreeMap::from([("notices".to_owned(), notices)]),
            ..ContainerCounts::default()
        };
        Process { name: name.to_owned(), container: Some(counts), ..Process::default() }
    }

    #[test]
    fn containers_are_added_and_what_they_share_is_not() {
        let mut containers = Containers::default();
        let both = [container("a", 10.0, 3.0, false), container("b", 1000.0, 4.0, true), Process::default()];
        let first = containers.after(1000, &both);
        assert_eq!((first.accepted_per_s, first.units["queued"], first.spool_free_ratio), (None, 4.0, 0.25));
        assert_eq!((first.destinations[0].is_open, first.destinations[0].waiting), (true, 4.0));
        let both = [container("a", 20.0, 0.0, false), container("b", 1005.0, 0.0, false)];
        let second = containers.after(2000, &both);
        assert_eq!((second.accepted_per_s, second.committed_per_s), (Some(15.0), Some(15.0)));
        assert_eq!((second.destinations[0].stored_per_s, second.rejected_per_s), (Some(15.0), Some(0.0)));
    }

    #[test]
    fn the_last_known_figures_stay_while_no_container_answers() {
        let mut containers = Containers::default();
        assert_eq!(containers.after(1000, &[]).problem, Some(NEVER_TOLD));
        containers.after(2000, &[container("a", 10.0, 3.0, true)]);
        let away = containers.after(3000, &[Process::default()]);
        assert_eq!((away.problem, away.at_ms, away.units["queued"]), (Some(AWAY), Some(2000), 3.0));
        assert_eq!(away.accepted_per_s, None);
    }
}
