//! The container: one request, several destinations, all of them or none (AC-T1 to AC-T10).

use nix::sys::signal::Signal;
use reqwest::Response;
use serde_json::{Value, json};
use tests::{free_port, wait_until};

use crate::container_fixture::{Scene, config, manifest};

/// Status and unit of a response.
async fn parts(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let location = response.headers().get("location").map(|value| value.to_str().unwrap().to_owned());
    let unit: Value = response.json().await.unwrap();
    assert_eq!(location.unwrap(), format!("/units/{}", unit["uow"]));
    (status, unit)
}

/// The state of each part, in the order of the destinations' names: board, notices, photos, rows.
fn states(unit: &Value) -> Vec<&str> {
    unit["parts"].as_array().unwrap().iter().map(|part| part["state"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn ac_t1_all_destinations_store_and_the_file_goes() {
    let mut scene = Scene::start().await;
    let sent = scene.post_with_photo(&manifest(7, &["Ada", "Bo"]), &[7; 20_000]).send().await.unwrap();
    let (status, unit) = parts(sent).await;
    let uow = unit["uow"].as_i64().unwrap();
    assert_eq!((status, unit["state"].as_str(), states(&unit)), (200, Some("committed"), vec!["stored"; 4]), "{unit}");
    assert_eq!(scene.current(7).await, Some(manifest(7, &["Ada", "Bo"])));
    assert_eq!((scene.photos(), scene.on_board(7).await), (vec![20_000], Some(2.0)));
    assert_eq!(scene.told(uow).await, [(1, "stored".to_owned())]);
    wait_until("the file is gone", async || scene.spooled() == 0).await;
    assert_eq!(scene.records(uow).await, ["commit"]);
    scene.container.signal(Signal::SIGTERM);
    assert!(scene.container.ended().await.success());
}

#[tokio::test]
async fn ac_t2_a_decline_is_a_success() {
    let scene = Scene::start().await;
    let (status, unit) = parts(scene.post(&manifest(7, &["Ada"])).send().await.unwrap()).await;
    assert_eq!((status, states(&unit)), (200, vec!["stored", "stored", "declined", "stored"]), "{unit}");
    assert!(scene.photos().is_empty());
}

#[tokio::test]
async fn ac_t3_one_4xx_takes_the_others_back_and_is_final() {
    let port = free_port();
    // The receiver refuses what is not signed with its secret.
    let scene = Scene::start_with(port, &config(&format!("http://127.0.0.1:{port}/refused"), "")).await;
    let sent = scene.post_with_photo(&manifest(7, &["Ada"]), &[7; 100]).send().await.unwrap();
    let (status, unit) = parts(sent).await;
    let uow = unit["uow"].as_i64().unwrap();
    assert_eq!((status, unit["state"].as_str()), (404, Some("rejected")), "{unit}");
    assert_eq!(states(&unit), ["undone", "failed_4xx", "undone", "pending"]);
    let report = unit["report"]["1"].as_array().unwrap();
    assert_eq!(report.len(), 4, "every destination is in the report: {unit}");
    assert_eq!((scene.current(7).await, scene.on_board(7).await), (None, None));
    assert_eq!(scene.photos(), [0], "a tombstone");
    wait_until("the file is gone", async || scene.spooled() == 0).await;
    assert_eq!(scene.records(uow).await, ["rejected"]);
}

#[tokio::test]
async fn ac_t4_one_5xx_takes_the_others_back_and_is_tried_again() {
    let mut scene = Scene::start().await;
    scene.notices.signal(Signal::SIGKILL);
    scene.notices.ended().await;
    let sent = scene.post_with_photo(&manifest(7, &["Ada"]), &[7; 100]).send().await.unwrap();
    let (status, unit) = parts(sent).await;
    let uow = unit["uow"].as_i64().unwrap();
    assert_eq!((status, unit["state"].as_str()), (502, Some("fail_queued")), "{unit}");
    assert_eq!((scene.current(7).await, scene.on_board(7).await, scene.photos()), (None, None, vec![0]));
    assert_eq!(scene.spooled(), 1, "the file is kept");
    scene.start_notices_again();
    wait_until("it is committed", async || scene.unit(uow).await["state"] == "committed").await;
    assert_eq!((scene.current(7).await, scene.on_board(7).await), (Some(manifest(7, &["Ada"])), Some(1.0)));
    let attempt = scene.unit(uow).await["attempt"].as_i64().unwrap();
    assert_eq!(scene.told(uow).await, [(attempt, "stored".to_owned())]);
    assert!(scene.photos().contains(&100));
    wait_until("the file is gone", async || scene.spooled() == 0).await;
    let records = scene.records(uow).await;
    assert_eq!(
        (records.first().map(String::as_str), records.last().map(String::as_str)),
        (Some("fail_queued"), Some("commit"))
    );
}

#[tokio::test]
async fn ac_t8_a_response_that_is_too_late_counts_as_stored_until_it_is_undone() {
    let scene = Scene::start().await;
    scene.notices.signal(Signal::SIGSTOP);
    let (status, unit) = parts(scene.post(&manifest(7, &["Ada"])).send().await.unwrap()).await;
    let uow = unit["uow"].as_i64().unwrap();
    assert_eq!(
        (status, unit["state"].as_str()),
        (202, Some("rolling_back")),
        "the undo has no response either: {unit}"
    );
    assert_eq!(states(&unit)[1], "timed_out");
    scene.notices.signal(Signal::SIGCONT);
    wait_until("it is committed", async || scene.unit(uow).await["state"] == "committed").await;
    let told = scene.told(uow).await;
    assert_eq!(told.first(), Some(&(1, "undone".to_owned())), "the late store was taken back: {told:?}");
    assert_eq!(told.last().map(|(_, state)| state.as_str()), Some("stored"));
}

#[tokio::test]
async fn ac_t10_a_destination_is_added_by_configuration_alone() {
    let mut scene = Scene::start().await;
    let (_, before) = parts(scene.post(&manifest(7, &["Ada"])).send().await.unwrap()).await;
    let further =
        "[destination.second]\nkind = \"board\"\nredis = \"REDIS_URL\"\nprefix = \"${BOARD_PREFIX}:second\"\n";
    let port = free_port();
    let declaration = config(&format!("http://127.0.0.1:{port}/notices"), further)
        .replace(
            r#"destinations = ["rows", "photos", "board", "notices"]"#,
            r#"destinations = ["rows", "board", "second"]"#,
        )
        .replace("[destination.photos]", "[destination.photos]\nretired = true")
        .replace("[destination.notices]", "[destination.notices]\nretired = true");
    scene.start_again(Some(declaration)).await;
    let (status, unit) = parts(scene.post(&manifest(8, &["Bo"])).send().await.unwrap()).await;
    assert_eq!((status, states(&unit)), (200, vec!["stored"; 3]), "{unit}");
    assert_eq!(scene.unit(before["uow"].as_i64().unwrap()).await["state"], json!("committed"), "{before}");
}

#[tokio::test]
async fn a_key_finds_its_unit_again_and_another_body_is_refused() {
    let scene = Scene::start().await;
    let post = |body: &Value| scene.post(body).header("idempotency-key", "a-key");
    let (status, unit) = parts(post(&manifest(7, &["Ada"])).send().await.unwrap()).await;
    let again = parts(post(&manifest(7, &["Ada"])).send().await.unwrap()).await;
    assert_eq!(again, (status, unit));
    let refused = post(&manifest(7, &["Bo"])).send().await.unwrap();
    assert_eq!(refused.status(), 409);
    assert_eq!(scene.spooled(), 0, "files of known requests are deleted");
    assert_eq!(scene.world.number("SELECT count(*) FROM units").await, 1);
}
