//! A Redis Cluster of three nodes beside one node, each held to a fifth of a core: so the nodes are what binds, as on machines of
//! their own.

use std::path::PathBuf;

use anyhow::{Context, Result};
use launcher::RedisCluster;

use super::log::CutLog;
use crate::bench::Bench;
use crate::report::{Row, Wanted};
use crate::sample::Samples;

/// The folder of the control groups for processor time.
const GROUPS: &str = "/sys/fs/cgroup/cpu";

/// Microseconds of processor in 100,000: a fifth of a core.
const QUOTA_US: &str = "20000";

/// Records per run: a node that is held takes some tens of thousands a second.
const RECORDS_MAX: i64 = 200_000;

/// Measures how fast the streamer fills one node and three nodes.
pub(super) async fn run(bench: &Bench, log: &CutLog, count: i64) -> Result<Vec<Row>> {
    let count = count.min(RECORDS_MAX);
    if Held::hold(std::process::id()).is_err() {
        return Ok(vec![Row::left_out(
            "left out: nodes held to a fifth of a core need root and control groups of version 1",
        )]);
    }
    bench.progress.step("a cluster of three nodes, each held to a fifth of a core");
    let cluster =
        RedisCluster::start_masters(&bench.redis_binary, &bench.folder.join("cluster"), &["--save", ""]).await?;
    let measured = measure(bench, log, &cluster, count).await;
    cluster.stop().await?;
    let (one, three) = measured?;
    let row = Row::new("streamer, records/s into three nodes of a fifth of a core each", &three);
    Ok(vec![row.beside("one such node", &one).wanted(Wanted::RatioAtLeast(2.2))])
}

/// The rates into one node and into three.
async fn measure(bench: &Bench, log: &CutLog, cluster: &RedisCluster, count: i64) -> Result<(Samples, Samples)> {
    log.client.batch_execute("TRUNCATE staged_log_records").await?;
    log.stage(count).await?;
    let (mut one, mut three) = (Samples::default(), Samples::default());
    let single = bench.server_pids()?.1;
    let nodes: Vec<u32> = cluster.nodes().iter().filter_map(|node| node.pid()).collect();
    for _ in 0..bench.config.runs {
        one.push(drain(bench, log, &[single], None, count).await?);
        three.push(drain(bench, log, &nodes, Some(&cluster.url()), count).await?);
    }
    Ok((one, three))
}

async fn drain(bench: &Bench, log: &CutLog, nodes: &[u32], redis_url: Option<&str>, count: i64) -> Result<f64> {
    log.forget_batches().await?;
    bench.fresh_redis().await?;
    if redis_url.is_some() {
        // The streams of the round before.
        log.new_id().await?;
    }
    let _held = nodes.iter().map(|pid| Held::hold(*pid)).collect::<Result<Vec<_>>>()?;
    let ended = log.start(bench, "streamer", &["--drain"], redis_url)?.succeed().await?;
    Ok(count as f64 / ended.elapsed.as_secs_f64())
}

/// A process that is held to a fifth of a core until this is dropped.
struct Held {
    pid: u32,
    group: PathBuf,
}

impl Held {
    fn hold(pid: u32) -> Result<Self> {
        let group = PathBuf::from(GROUPS).join(format!("rocket-rides-bench-{pid}"));
        std::fs::create_dir(&group).with_context(|| format!("creating {}", group.display()))?;
        let held = Self { pid, group };
        held.write("cpu.cfs_quota_us", QUOTA_US)?;
        held.write("cgroup.procs", &pid.to_string())?;
        Ok(held)
    }

    fn write(&self, name: &str, value: &str) -> Result<()> {
        std::fs::write(self.group.join(name), value)
            .with_context(|| format!("writing {name} of {}", self.group.display()))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A group can be removed only when it is empty. An error leaves an empty folder of the kernel behind.
        let _ = std::fs::write(PathBuf::from(GROUPS).join("cgroup.procs"), self.pid.to_string());
        let _ = std::fs::remove_dir(&self.group);
    }
}
