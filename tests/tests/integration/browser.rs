//! The live page in a real browser, while everything behind it is broken and mended. See tests/browser/watch.py.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tests::{PrivatePostgres, PrivateRedis, Process, Watched, World, python_program, scratch_folder, wait_until};
use tokio::process::Command;

use crate::dashboard::Page;

const CONSUMERS: [&str; 3] = ["consumer0", "consumer1", "consumer2"];

/// The browser's program prints "now: …" when it wants something done. Each of these steps follows such a line.
#[tokio::test]
async fn a_browser_sees_consumers_converge_whatever_happens_to_the_servers() {
    let (mut postgres, mut redis) = (PrivatePostgres::start().await, PrivateRedis::start(&[]).await);
    let mut world = World::on(&postgres.url(), &redis.url()).await;
    let streamer = Watched::start(&world, "streamer", &["--fault-orders"]).await;
    let mut consumers = Vec::new();
    let mut targets = vec![format!("streamer={}", streamer.address())];
    for name in CONSUMERS {
        let port = tests::free_port().to_string();
        consumers.push(start_consumer(&world, name, &port));
        targets.push(format!("{name}=127.0.0.1:{port}"));
    }
    let port = tests::free_port().to_string();
    let api = Process::start(&world, "api", &["--api-port", &port]);
    let simulator = Process::start(&world, "simulator", &["--api-port", &port, "--rate", "30"]);
    let (page_port, flags) = (tests::free_port(), ["--fault-orders", "--watch", &targets.join(",")]);
    let page = Page::start_on(&world, page_port, &flags).await;
    let pictures = pictures_folder();
    let mut browser = start_browser(&page.url, &pictures);

    browser.wait_for("now: kill consumer1").await;
    consumers.remove(1).kill().await;
    browser.wait_for("now: start consumer1").await;
    let port = targets[2].rsplit_once(':').unwrap().1;
    consumers.insert(1, start_consumer(&world, CONSUMERS[1], port));
    browser.wait_for("now: no more traffic").await;
    simulator.stop().await;
    browser.wait_for("converged: ").await;
    assert_totals_shown(&world, &browser.output()).await;

    browser.wait_for("now: kill Redis").await;
    redis.kill().await;
    browser.wait_for("now: start Redis").await;
    redis.start_again().await;
    browser.wait_for("now: kill Postgres").await;
    postgres.kill().await;
    browser.wait_for("now: start Postgres").await;
    postgres.start_again().await;
    world = world.reconnected().await;

    let page = break_page(page, &world, page_port, &flags, &mut browser).await;
    browser.wait_for("now: one more ride").await;
    let injected = "rocket_rides_faults_injected_total";
    let injected_count = streamer.metric(injected).await;
    world.write_rides(1).await;
    wait_until("the new server's order is carried out", async || streamer.metric(injected).await > injected_count)
        .await;
    let output = browser.succeed().await;
    assert!(output.contains("seen everything"), "{output}");
    assert_pictures(&pictures);
    world.assert_converged(&CONSUMERS).await;
    for process in [vec![page.process, api, streamer.process], consumers].into_iter().flatten() {
        process.stop().await;
    }
}

fn start_consumer(world: &World, name: &str, port: &str) -> Process {
    Process::start(world, "consumer", &[name, "--fault-orders", "--monitor-port", port])
}

fn start_browser(url: &str, pictures: &Path) -> Process {
    let mut command = Command::new(python_program("python"));
    command.arg(tests::root().join("tests/browser/watch.py")).arg(url).arg(pictures);
    Process::spawn("the browser", command)
}

/// The repository's pictures are replaced only on request: a test leaves the work tree as it is.
fn pictures_folder() -> PathBuf {
    match std::env::var_os("UPDATE_PICTURES") {
        Some(_) => tests::root().join("docs/images"),
        None => scratch_folder(),
    }
}

/// The browser printed the totals that SQL computes.
async fn assert_totals_shown(world: &World, output: &str) {
    let (ride_count, distance_mm) = world.sql_totals().await;
    let seen = output.replace(',', "");
    let expected = format!("converged: {ride_count} rides {}.{:03} m", distance_mm / 1000, distance_mm % 1000);
    assert!(seen.contains(&expected), "{expected}:\n{seen}");
}

/// Stops the page's server for a while, kills it, and starts another one.
async fn break_page(page: Page, world: &World, port: u16, flags: &[&str], browser: &mut Process) -> Page {
    browser.wait_for("now: stop the page's server for a while").await;
    page.process.signal(Signal::SIGSTOP);
    browser.wait_for("now: let it go on").await;
    page.process.signal(Signal::SIGCONT);
    browser.wait_for("now: kill the page's server").await;
    page.process.kill().await;
    browser.wait_for("now: start the page's server").await;
    Page::start_on(world, port, flags).await
}

fn assert_pictures(folder: &Path) {
    for kind in ["light-wide", "light-phone", "dark-wide", "dark-phone"] {
        let picture = std::fs::metadata(folder.join(format!("dashboard-{kind}.png"))).unwrap();
        assert!(picture.len() > 20_000, "{kind}: {} bytes", picture.len());
    }
    if !folder.starts_with(tests::root()) {
        std::fs::remove_dir_all(folder).unwrap();
    }
}
