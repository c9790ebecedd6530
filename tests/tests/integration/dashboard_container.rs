//! The container's panel of the live page: what the container counts, and a button that makes a destination fail.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{Process, World, wait_until};
use tokio::process::Command;

use crate::container_watched::WatchedScene;
use crate::dashboard::Page;

/// The container of the last sample.
async fn container(page: &Page) -> Value {
    page.state().await.map(|mut state| state["container"].take()).unwrap_or_default()
}

async fn is_told(page: &Page) -> bool {
    let container = container(page).await;
    container["problem"].is_null() && container["destinations"].as_array().is_some_and(|list| list.len() == 3)
}

/// A container that takes orders, and a page that watches it.
async fn start(flags: &[&str]) -> (WatchedScene, Page) {
    let watched = WatchedScene::start(World::new().await, flags).await;
    let watch = format!("container={}", watched.monitor.address());
    let page = Page::start(&watched.scene.world, &["--fault-orders", "--watch", &watch]).await;
    (watched, page)
}

#[tokio::test]
async fn the_page_shows_what_a_container_counts_and_orders_outages() {
    let (mut watched, page) = start(&["--fault-orders"]).await;
    wait_until("the container is told of", async || is_told(&page).await).await;
    assert_eq!(watched.post(7).await.0, 200);
    wait_until("the unit is counted", async || container(&page).await["committed_per_s"].as_f64() > Some(0.0)).await;

    let (status, answer) = order(&page, "rows").await;
    assert_eq!((status, &answer["error"]), (409, &json!("no container is watched that has the destination rows")));
    let (status, answer) = order(&page, "board").await;
    assert_eq!(status, 200, "{answer}");
    let (status, _) = watched.post(8).await;
    assert_eq!(status, 503);
    let is_board = |line: &Value| line["name"] == "board" && line["failed_per_s"].as_f64() > Some(0.0);
    wait_until("the failure is counted", async || {
        container(&page).await["destinations"].as_array().unwrap().iter().any(is_board)
    })
    .await;

    watched.scene.container.signal(Signal::SIGKILL);
    watched.scene.container.ended().await;
    wait_until("the container is away", async || {
        let container = container(&page).await;
        container["problem"].as_str().is_some_and(|text| text.starts_with("The container does not answer."))
            && container["at_ms"].is_number()
    })
    .await;
    page.process.stop().await;
}

#[tokio::test]
async fn a_container_that_takes_no_orders_refuses_them() {
    let (_watched, page) = start(&[]).await;
    wait_until("the container is told of", async || is_told(&page).await).await;
    let (status, answer) = order(&page, "board").await;
    assert_eq!(status, 409, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("FAULT_ORDERS is not set"), "{answer}");
    page.process.stop().await;
}

/// Presses the button of a destination.
async fn order(page: &Page, destination: &str) -> (u16, Value) {
    let token = page.token().await.unwrap();
    page.order(&[("x-fault-token", &token)], &json!({ "kind": "fail", "destination": destination })).await
}

/// The browser's program prints "now: …" when it wants something done. See tests/browser/container.py.
#[tokio::test]
async fn a_browser_sees_units_wait_for_a_destination_that_a_button_makes_fail() {
    let (mut watched, page) = start(&["--fault-orders"]).await;
    let mut command = Command::new(tests::python_program("python"));
    command.arg(tests::root().join("tests/browser/container.py")).arg(&page.url);
    let mut browser = Process::spawn("the browser", command);

    browser.wait_for("now: post manifests").await;
    {
        let posting = async {
            for ride_id in 1.. {
                watched.post(ride_id).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::select! {
            () = posting => {}
            () = browser.wait_for("now: no more manifests") => {}
        }
    }
    browser.wait_for("now: kill the container").await;
    watched.scene.container.signal(Signal::SIGKILL);
    watched.scene.container.ended().await;
    let output = browser.succeed().await;
    assert!(output.contains("seen everything"), "{output}");
    page.process.stop().await;
}
