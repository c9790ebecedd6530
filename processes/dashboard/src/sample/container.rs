//! The container's part of a sample. Its figures are those of the metrics of every container that is watched.

use std::collections::BTreeMap;

use serde::Serialize;

/// The figures of all containers together. While no container answers, they are the last known ones.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Container {
    /// Why the figures are old or absent, in a sentence. `None`: they are of this sample.
    pub problem: Option<&'static str>,
    /// When they were told, in milliseconds since 1970. `None`: they never were.
    pub at_ms: Option<u64>,
    /// Units that were accepted per second. `None`: not known yet. So are the other rates.
    pub accepted_per_s: Option<f64>,
    pub committed_per_s: Option<f64>,
    pub rejected_per_s: Option<f64>,
    /// Attempts that have failed and are tried again, per second.
    pub failed_per_s: Option<f64>,
    /// Units that are not settled, by state.
    pub units: BTreeMap<String, f64>,
    /// The age of the oldest unit that is neither settled nor dead.
    pub oldest_s: f64,
    /// Files in the spools, by the last sweeps.
    pub spool_files: f64,
    /// The share of a spool's disk that is free, the least of all.
    pub spool_free_ratio: f64,
    /// By name.
    pub destinations: Vec<DestinationLine>,
}

/// A destination of the container.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct DestinationLine {
    pub name: String,
    /// Whether its breaker is open.
    pub is_open: bool,
    /// Units that wait for it.
    pub waiting: f64,
    pub stored_per_s: Option<f64>,
    pub failed_per_s: Option<f64>,
}

/// The counts of one container.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ContainerCounts {
    pub accepted: f64,
    /// By the state of the unit after it.
    pub verdicts: BTreeMap<String, f64>,
    /// By state.
    pub units: BTreeMap<String, f64>,
    pub oldest_s: f64,
    pub spool_files: f64,
    pub spool_free_ratio: f64,
    /// By name.
    pub destinations: BTreeMap<String, DestinationCounts>,
}

/// The counts of one container about a destination.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct DestinationCounts {
    pub is_open: bool,
    pub waiting: f64,
    /// Stores that were done or declined.
    pub stored: f64,
    pub failed: f64,
}

impl ContainerCounts {
    /// Reads the metrics of a process. `None`: it is no container.
    pub fn read(metrics: &str) -> Option<Self> {
        let (mut counts, mut is_container) = (Self::default(), false);
        for line in metrics.lines().filter(|line| !line.starts_with('#')) {
            let Some((sample, value)) = line.rsplit_once(' ') else { continue };
            let (Some(name), Ok(value)) = (sample.strip_prefix("rocket_rides_"), value.parse()) else { continue };
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            is_container |= name == "units_accepted_total";
            counts.take(name, labels, value);
        }
        is_container.then_some(counts)
    }

    fn take(&mut self, name: &str, labels: &str, value: f64) {
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            rest.split('"').next().map(str::to_owned)
        };
        match name {
            "units_accepted_total" => self.accepted = value,
            "unit_verdicts_total" => self.verdicts.extend(label("state").map(|state| (state, value))),
            "units" => self.units.extend(label("state").map(|state| (state, value))),
            "unit_oldest_seconds" => self.oldest_s = value,
            "spool_files" => self.spool_files = value,
            "spool_free_ratio" => self.spool_free_ratio = value,
            _ => {
                let Some(figure) = name.strip_prefix("destination_") else { return };
                let Some(destination) = label("destination") else { return };
                let counts = self.destinations.entry(destination).or_default();
                match (figure, label("outcome").as_deref()) {
                    ("breaker_open", _) => counts.is_open = value > 0.0,
                    ("waiting_units", _) => counts.waiting = value,
                    ("stores_total", Some("stored" | "declined")) => counts.stored += value,
                    ("stores_total", _) => counts.failed += value,
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_of_a_container_are_found_and_others_are_of_no_container() {
        let metrics = "# HELP rocket_rides_units x\nrocket_rides_units_accepted_total 7\n\
                       rocket_rides_unit_verdicts_total{state=\"committed\"} 5\n\
                       rocket_rides_units{state=\"fail_queued\"} 2\n\
                       rocket_rides_unit_oldest_seconds 12.5\n\
                       rocket_rides_spool_files 2\nrocket_rides_spool_free_ratio 0.5\n\
                       rocket_rides_destination_breaker_open{destination=\"notices\"} 1\n\
                       rocket_rides_destination_waiting_units{destination=\"notices\"} 2\n\
                       rocket_rides_destination_stores_total{destination=\"notices\",outcome=\"stored\"} 5\n\
                       rocket_rides_destination_stores_total{destination=\"notices\",outcome=\"declined\"} 1\n\
                       rocket_rides_destination_stores_total{destination=\"notices\",outcome=\"timed_out\"} 3\n\
                       rocket_rides_destination_stores_total{destination=\"notices\",outcome=\"failed_5xx\"} 4\n";
        let counts = ContainerCounts::read(metrics).unwrap();
        assert_eq!((counts.accepted, counts.verdicts["committed"], counts.units["fail_queued"]), (7.0, 5.0, 2.0));
        assert_eq!((counts.oldest_s, counts.spool_files, counts.spool_free_ratio), (12.5, 2.0, 0.5));
        let notices = DestinationCounts { is_open: true, waiting: 2.0, stored: 6.0, failed: 7.0 };
        assert_eq!(counts.destinations, BTreeMap::from([("notices".to_owned(), notices)]));
        assert_eq!(ContainerCounts::read("# another process\nrocket_rides_ready 1\n"), None);
    }
}
