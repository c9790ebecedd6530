//! The whole system: api, streamer, three consumers, and the reaper if a case needs it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::bench::Bench;
use crate::load::start_api;
use crate::proc_stat;
use crate::process::Running;

/// The consumers.
pub(crate) const CONSUMERS: [&str; 3] = ["consumer0", "consumer1", "consumer2"];

/// How long consumers may take to catch up after the last ride.
const CATCH_UP_WAIT: Duration = Duration::from_secs(60);

/// The running system.
pub(crate) struct Fleet {
    processes: Vec<Running>,
    /// The port of the api.
    pub port: u16,
}

/// The CPU time so far, one pair per process.
pub(crate) type CpuTimes = Vec<(String, f64)>;

impl Fleet {
    /// Starts everything on empty servers. `reaper` has the reaper's arguments, if it runs.
    ///
    /// # Errors
    /// A process does not start.
    pub async fn start(bench: &Bench, reaper: Option<&[&str]>) -> Result<Self> {
        let mut fleet = Self::start_without_consumers(bench).await?;
        for name in CONSUMERS {
            fleet.add(bench.start_consumer(name, &[])?);
        }
        if let Some(args) = reaper {
            fleet.add(bench.start_process("reaper", args)?);
        }
        fleet.wait_for_consumers(bench).await?;
        Ok(fleet)
    }

    /// Starts api and streamer on empty servers.
    ///
    /// # Errors
    /// A process does not start.
    pub async fn start_without_consumers(bench: &Bench) -> Result<Self> {
        bench.fresh_tables().await?;
        bench.fresh_redis().await?;
        let api = start_api(bench, &[]).await?;
        Ok(Self { processes: vec![api.process, bench.start_process("streamer", &[])?], port: api.port })
    }

    /// Adds a process.
    pub fn add(&mut self, process: Running) {
        self.processes.push(process);
    }

    /// Waits until all consumers are registered.
    ///
    /// # Errors
    /// A consumer does not register in time.
    pub async fn wait_for_consumers(&mut self, bench: &Bench) -> Result<()> {
        let deadline = Instant::now() + CATCH_UP_WAIT;
        let count = "SELECT count(*) FROM checkpoints WHERE NOT is_baseline";
        while bench.number(count).await? < CONSUMERS.len() as i64 {
            self.check()?;
            ensure!(Instant::now() < deadline, "the consumers do not register");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Waits until every consumer has folded every ride, and checks the sums.
    ///
    /// # Errors
    /// A consumer does not reach SQL's sum in time.
    pub async fn wait_until_caught_up(&mut self, bench: &Bench) -> Result<()> {
        let deadline = Instant::now() + CATCH_UP_WAIT;
        let behind = "-- benchmarks::wait_until_caught_up
             SELECT count(*) FROM consumer_states
             WHERE (ride_count, total_distance_mm) IS DISTINCT FROM
                   (SELECT (count(*), COALESCE(sum(distance_mm), 0)::bigint) FROM rides)
               AND name = ANY ('{consumer0,consumer1,consumer2}')";
        while bench.number(behind).await? > 0 {
            self.check()?;
            ensure!(Instant::now() < deadline, "the consumers do not come to SQL's own sum");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Checks that every process runs.
    ///
    /// # Errors
    /// A process has ended. The error has its last lines of log.
    pub fn check(&mut self) -> Result<()> {
        self.processes.iter_mut().try_for_each(Running::check)
    }

    /// CPU time used so far by every process and both servers, in seconds.
    ///
    /// # Errors
    /// A process has ended.
    pub fn cpu_times(&self, bench: &Bench) -> Result<CpuTimes> {
        let (postgres, redis) = bench.server_pids()?;
        let mut times = CpuTimes::new();
        for process in &self.processes {
            times.push((process.name().to_owned(), process.cpu_seconds()?));
        }
        times.push(("postgres".to_owned(), proc_stat::cpu_seconds_with_children(postgres)?));
        times.push(("redis".to_owned(), proc_stat::cpu_seconds_with_children(redis)?));
        Ok(times)
    }

    /// Memory of every process, in MB.
    ///
    /// # Errors
    /// A process has ended.
    pub fn memory_mb(&self) -> Result<Vec<(String, f64)>> {
        self.processes.iter().map(|process| Ok((process.name().to_owned(), process.memory_mb()?))).collect()
    }

    /// Stops everything.
    ///
    /// # Errors
    /// A process fails.
    pub async fn stop(self) -> Result<()> {
        for process in self.processes {
            process.stop().await?;
        }
        Ok(())
    }
}

/// The CPU time of each process between two looks, in percent of a core.
///
/// # Errors
/// A process of the first look is missing in the second.
pub(crate) fn cpu_percent(before: &CpuTimes, after: &CpuTimes, elapsed: Duration) -> Result<Vec<(String, f64)>> {
    let mut percents = Vec::new();
    for (name, then) in before {
        let (_, now) = after.iter().find(|(other, _)| other == name).with_context(|| format!("{name} has gone"))?;
        percents.push((name.clone(), 100.0 * (now - then) / elapsed.as_secs_f64()));
    }
    Ok(percents)
}
