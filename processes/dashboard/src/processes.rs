//! Asks each process on its monitor port: whether it is ready, its process id, and a few of its metrics.

use std::str::FromStr;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;

use crate::sample::{ContainerCounts, Process};

/// How long a process may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// A process to watch: `consumer0=127.0.0.1:5014`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    name: String,
    address: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let target = text.split_once('=').and_then(|(name, address)| {
            let (host, port) = address.rsplit_once(':')?;
            let is_good = !name.is_empty() && !host.is_empty() && port.parse::<u16>().is_ok();
            is_good.then(|| Self { name: name.to_owned(), address: address.to_owned() })
        });
        target.ok_or_else(|| "give NAME=HOST:PORT, for example consumer0=127.0.0.1:5014".to_owned())
    }
}

impl Target {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// The processes to watch, and the HTTP client that asks them.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    pub targets: Vec<Target>,
    pub client: reqwest::Client,
}

impl Watch {
    pub fn new(targets: &[Target]) -> Self {
        let client = reqwest::Client::builder().timeout(ANSWER_WAIT).no_proxy().build();
        Self { targets: targets.to_vec(), client: client.unwrap_or_default() }
    }

    /// Asks all processes concurrently.
    pub async fn ask(&self) -> Vec<Process> {
        join_all(self.targets.iter().map(|target| self.ask_one(target))).await
    }

    async fn ask_one(&self, target: &Target) -> Process {
        let away = || Process { name: target.name.clone(), ..Process::default() };
        let (Ok(readiness), Ok(metrics)) =
            tokio::join!(self.client.get(target.url("/readyz")).send(), self.client.get(target.url("/metrics")).send())
        else {
            return away();
        };
        let (Ok(readiness), Ok(metrics)) = tokio::join!(readiness.json::<Readiness>(), metrics.text()) else {
            return away();
        };
        let late = readiness.parts.into_iter().filter(|part| !part.ready).map(|part| part.name);
        let is_ready = Some(readiness.ready);
        let process = Process { is_ready, pid: readiness.pid, waits_for: late.collect(), ..away() };
        with_metrics(process, &metrics)
    }
}

/// The response of `/readyz`.
#[derive(Deserialize)]
struct Readiness {
    ready: bool,
    /// Absent if the process is of an earlier version.
    pid: Option<u32>,
    parts: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    name: String,
    ready: bool,
}

/// Adds the metrics that the page shows.
fn with_metrics(mut process: Process, metrics: &str) -> Process {
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let Some((sample, value)) = line.rsplit_once(' ') else { continue };
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let value: Option<f64> = value.parse().ok();
        match name {
            "rocket_rides_start_time_seconds" => process.started_at_s = value,
            "rocket_rides_leader" => process.is_leader = value.map(|value| value > 0.0),
            "rocket_rides_leads" => {
                let partition = label(labels, "partition").and_then(|partition| partition.parse::<i32>().ok());
                process.leads.extend(partition.filter(|_| value.is_some_and(|value| value > 0.0)));
            }
            "rocket_rides_entries_refused_total" => add(&mut process.refused_count, value),
            "rocket_rides_faults_injected_total" => add(&mut process.sent_twice_count, value),
            "rocket_rides_crashes_survived_total" => process.consumer = label(labels, "consumer").map(str::to_owned),
            "rocket_rides_wallet_reads_total" => {
                let reads = process.wallet_reads.get_or_insert_default();
                let from = if labels.contains("\"redis\"") { &mut reads.redis } else { &mut reads.postgres };
                *from += value.unwrap_or(0.0);
            }
            "rocket_rides_wallet_model_building" => process.is_rebuilding = value.map(|value| value > 0.0),
            _ => {}
        }
    }
    process.leads.sort_unstable();
    process.container = ContainerCounts::read(metrics);
    process
}

/// The value of a label in `consumer="consumer0",partition="3"}`.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = labels.split_once(&format!("{name}=\""))?;
    rest.split('"').next()
}

fn add(sum: &mut Option<f64>, value: Option<f64>) {
    *sum = sum.zip(value).map(|(sum, value)| sum + value).or(value).or(*sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_name_and_an_address() {
        let target: Target = "consumer0=127.0.0.1:5014".parse().unwrap();
        assert_eq!((target.name(), target.url("/readyz").as_str()), ("consumer0", "http://127.0.0.1:5014/readyz"));
        for bad in ["consumer0", "=127.0.0.1:1", "a=127.0.0.1", "a=:1", "a=b:70000"] {
            assert_eq!(
                bad.parse::<Target>().unwrap_err(),
                "give NAME=HOST:PORT, for example consumer0=127.0.0.1:5014",
                "{bad}"
            );
        }
    }

    #[test]
    fn the_metrics_that_the_page_shows_are_found_among_all() {
        let metrics = "# HELP rocket_rides_leader x\nrocket_rides_leader 1\nrocket_rides_entries_refused_total 7\n\
                       rocket_rides_faults_injected_total 5\n\
                       rocket_rides_start_time_seconds 12.5\n\
                       rocket_rides_crashes_survived_total{consumer=\"consumer0\"} 3\n\
                       rocket_rides_wallet_reads_total{source=\"redis\"} 9\n\
                       rocket_rides_wallet_reads_total{source=\"postgres\"} 2\n\
                       rocket_rides_wallet_model_building 1\n";
        let process = with_metrics(Process::default(), metrics);
        assert_eq!((process.is_leader, process.refused_count), (Some(true), Some(7.0)));
        assert_eq!(process.sent_twice_count, Some(5.0));
        assert_eq!(process.wallet_reads.map(|reads| (reads.redis, reads.postgres)), Some((9.0, 2.0)));
        assert_eq!(process.is_rebuilding, Some(true));
        assert_eq!((process.started_at_s, process.consumer.as_deref()), (Some(12.5), Some("consumer0")));
    }

    #[test]
    fn figures_of_several_partitions_are_added_and_the_led_ones_listed() {
        let metrics = "# of two partitions\nrocket_rides_leader 2\n\
                       rocket_rides_leads{partition=\"0\"} 1\nrocket_rides_leads{partition=\"3\"} 0\n\
                       rocket_rides_leads{partition=\"12\"} 1\n\
                       rocket_rides_entries_refused_total{partition=\"0\"} 7\n\
                       rocket_rides_entries_refused_total{partition=\"3\"} 2\n\
                       rocket_rides_crashes_survived_total{partition=\"3\",consumer=\"consumer0\"} 3\n";
        let process = with_metrics(Process::default(), metrics);
        assert_eq!((process.is_leader, &process.leads[..]), (Some(true), &[0, 12][..]));
        assert_eq!((process.refused_count, process.consumer.as_deref()), (Some(9.0), Some("consumer0")));
    }
}
