//! `bin/up --partitions 8 --redis-cluster`: a cut log over a private Redis Cluster, which is found again with its data.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::{Process, wait_until};
use tokio::process::Command;

use crate::launcher::UpFolder;

fn up(folder: &UpFolder, args: &[&str]) -> Process {
    let mut command = folder.up_command(&[]);
    command.args(args);
    Process::spawn("launcher", command)
}

/// The rest of the first line of the banner that begins so.
fn line_of(up: &Process, start: &str) -> String {
    let output = up.output();
    let line = output.lines().find_map(|line| line.trim_start().strip_prefix(start));
    line.unwrap_or_else(|| panic!("{start}: {output}")).trim().to_owned()
}

async fn run(script: &str) -> String {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script);
    Process::spawn("sh", shell).succeed().await
}

#[tokio::test]
async fn up_shows_eight_partitions_over_a_cluster_whose_nodes_die() {
    // With many rides a second there is hardly a moment in which all partitions are at the head.
    let folder = UpFolder::with_rate(3).await;
    let mut launcher = up(&folder, &["--partitions", "8", "--redis-cluster"]);
    launcher.wait_for("CONVERGED").await;
    // Postgres, the Redis beside the cluster, six nodes and six processes.
    folder.pids_of(14).await;
    let stream = line_of(&launcher, "stream  private: ");
    assert!(stream.starts_with("redis-cli -c -p ") && stream.contains(":{14}' - + COUNT 3"), "{stream}");
    wait_until("the first partition has records", async || run(&stream).await.contains("1-0")).await;
    let export = line_of(&launcher, "export ");
    assert!(export.contains(" WALLETS_REDIS_URL='redis+unix://") && !export.contains("REDIS_SOCKET"), "{export}");
    let heads = format!("export {export}\ncurl -s \"localhost:$API_PORT/totals?by=partition\"");
    let totals: serde_json::Value = serde_json::from_str(&run(&heads).await).unwrap();
    assert_eq!(totals["partitions"].as_array().unwrap().len(), 8, "{totals}");

    let nodes = line_of(&launcher, "nodes   ");
    let pid = nodes.split("(pid ").nth(1).unwrap().split(')').next().unwrap();
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    launcher.wait_for("starting it again").await;
    launcher.wait_for("runs again").await;
    let ride_count = folder.ride_count().await;
    wait_until("rides go on", async || folder.ride_count().await > ride_count + 10).await;
    launcher.wait_for("CONVERGED").await;
    launcher.signal(Signal::SIGINT);
    assert!(launcher.ended().await.success(), "{}", launcher.output());

    let other = up(&folder, &["--partitions", "4", "--redis-cluster"]).fail(1).await;
    assert!(other.contains("the log has 8 partition(s), and 4 were asked for"), "{other}");
    // The log keeps its number, and the cluster its ports and data.
    let mut launcher = up(&folder, &["--redis-cluster"]);
    launcher.wait_for("CONVERGED").await;
    assert_eq!(line_of(&launcher, "stream  private: "), stream);
    assert!(!launcher.output().contains("made anew"), "{}", launcher.output());
    assert!(run(&stream).await.contains("-0"), "the stream is there");
    launcher.signal(Signal::SIGINT);
    assert!(launcher.ended().await.success(), "{}", launcher.output());
}

#[tokio::test]
async fn up_says_what_is_wrong_with_partitions_and_clusters() {
    let folder = UpFolder::new().await;
    for bad in ["0", "65", "all"] {
        let output = up(&folder, &["--partitions", bad]).fail(2).await;
        assert!(output.contains("give a number from 1 to 64"), "{output}");
    }
    let mut command = folder.up_command(&[("REDIS_URL", "redis://127.0.0.1:1")]);
    command.args(["--redis-cluster", "--use", "REDIS_URL"]);
    let output = Process::spawn("launcher", command).fail(1).await;
    assert!(output.contains("--redis-cluster starts a cluster, so REDIS_URL has no use"), "{output}");
}
