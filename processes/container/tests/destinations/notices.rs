//! The receiver of notices, as a real process.

use container::destination::{Destination, Outcome, Refusal, Unit};
use container::webhook::Webhook;
use reqwest::{Client, StatusCode};
use serde_json::Value;
use standardwebhooks::Webhook as Signer;

use crate::world::{Folder, Receiver, SECRET, again, unit, webhook};

fn status(outcome: &Outcome) -> u16 {
    match outcome {
        Outcome::Failed(Refusal { status, .. }) => *status,
        _ => panic!("{outcome:?} is no failure"),
    }
}

async fn store(webhook: &Webhook, unit: &Unit) {
    assert_eq!(webhook.store(unit).await, Outcome::Stored);
}

#[tokio::test]
async fn a_repetition_changes_nothing_and_a_late_store_is_refused() {
    let folder = Folder::new();
    let receiver = Receiver::start(&folder).await;
    let (webhook, unit) = (receiver.webhook(), unit(17, "7", 2));
    for _ in 0..2 {
        store(&webhook, &unit).await;
        assert_eq!(receiver.state(unit.key, 1).await.as_deref(), Some("stored"));
    }
    for _ in 0..2 {
        webhook.undo(unit.reference()).await.unwrap();
        assert_eq!(receiver.state(unit.key, 1).await.as_deref(), Some("undone"));
    }
    assert_eq!(status(&webhook.store(&unit).await), 409);
    assert_eq!(receiver.state(unit.key, 1).await.as_deref(), Some("undone"));
    let journal = std::fs::read_to_string(folder.path().join("journal.jsonl")).unwrap();
    assert_eq!(journal.lines().count(), 2, "a repetition is not written");
}

#[tokio::test]
async fn an_undo_before_the_store_refuses_it() {
    let folder = Folder::new();
    let receiver = Receiver::start(&folder).await;
    let (webhook, unit) = (receiver.webhook(), unit(17, "7", 2));
    webhook.undo(unit.reference()).await.unwrap();
    assert_eq!(status(&webhook.store(&unit).await), 409);
}

#[tokio::test]
async fn a_late_undo_of_the_first_attempt_does_not_touch_the_second() {
    let folder = Folder::new();
    let receiver = Receiver::start(&folder).await;
    let (webhook, first) = (receiver.webhook(), unit(17, "7", 2));
    let second = again(&first, 2);
    store(&webhook, &first).await;
    store(&webhook, &second).await;
    webhook.undo(first.reference()).await.unwrap();
    assert_eq!(receiver.state(first.key, 1).await.as_deref(), Some("undone"));
    assert_eq!(receiver.state(first.key, 2).await.as_deref(), Some("stored"));
}

#[tokio::test]
async fn the_register_survives_a_kill() {
    let folder = Folder::new();
    let receiver = Receiver::start(&folder).await;
    let (webhook, stored, undone) = (receiver.webhook(), unit(17, "7", 2), unit(18, "8", 1));
    store(&webhook, &stored).await;
    webhook.undo(undone.reference()).await.unwrap();
    let told = receiver.told().await;
    receiver.kill().await;
    let receiver = Receiver::start(&folder).await;
    assert_eq!(receiver.told().await, told);
    let webhook = receiver.webhook();
    store(&webhook, &stored).await;
    assert_eq!(status(&webhook.store(&undone).await), 409);
}

#[tokio::test]
async fn a_second_receiver_on_the_same_journal_is_refused() {
    let folder = Folder::new();
    let _receiver = Receiver::start(&folder).await;
    let log = Receiver::try_start(&folder).await.err().unwrap();
    assert!(log.contains("is in use") && log.contains("NOTICES_DATA"), "{log}");
}

#[tokio::test]
async fn a_bad_signature_is_refused() {
    let folder = Folder::new();
    let receiver = Receiver::start(&folder).await;
    let other = webhook(&receiver.url, "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    let unit = unit(17, "7", 2);
    assert_eq!(status(&other.store(&unit).await), 401);
    assert_eq!(other.undo(unit.reference()).await.unwrap_err().status, 401);
    assert!(receiver.told().await.is_empty());
}

/// Sends a body with a signature of the receiver's secret, as of `age_s` seconds ago; `sent` is what arrives.
async fn send(receiver: &Receiver, signed: &str, sent: &str, age_s: i64) -> (StatusCode, Value) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let at_s = now.as_secs() as i64 - age_s;
    let signature = Signer::new(SECRET).unwrap().sign("id", at_s, signed.as_bytes()).unwrap();
    let request = Client::new().post(receiver.url.clone()).body(sent.to_owned());
    let request = request.header("webhook-id", "id").header("webhook-timestamp", at_s);
    let response = request.header("webhook-signature", signature).send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

const NOTICE: &str = r#"{"type":"manifests.store","data":{"unit":"01890a5d-ac96-774b-bcce-b302099a8057","attempt":1,
    "uow":17,"resource":"manifests","subject":"7","document":{"passengers":[]}}}"#;

#[tokio::test]
async fn only_a_whole_and_fresh_notice_is_taken() {
    let folder = Folder::new();
    let receiver = Receiver::start(&folder).await;
    let unsigned = Client::new().post(receiver.url.clone()).body(NOTICE).send().await.unwrap();
    assert_eq!(unsigned.status(), StatusCode::UNAUTHORIZED);
    let changed = NOTICE.replace("17", "18");
    let long = NOTICE.replace("[]", &format!("[\"{}\"]", "x".repeat(80 * 1024)));
    let cases = [
        (NOTICE, changed.as_str(), 0, 401, "signature_bad"),
        (NOTICE, NOTICE, 400, 401, "signature_bad"),
        (NOTICE, NOTICE, -400, 401, "signature_bad"),
        ("{}", "{}", 0, 400, "notice_bad"),
        ("", "", 0, 400, "notice_bad"),
        (&NOTICE.replace("store", "sell"), &NOTICE.replace("store", "sell"), 0, 400, "notice_bad"),
        (&long, &long, 0, 413, "body_unreadable"),
    ];
    for (signed, sent, age_s, status, code) in cases {
        let (responded, body) = send(&receiver, signed, sent, age_s).await;
        assert_eq!((responded.as_u16(), body["code"].as_str()), (status, Some(code)), "{body}");
    }
    assert!(receiver.told().await.is_empty());
    assert_eq!(send(&receiver, NOTICE, NOTICE, 0).await, (StatusCode::OK, serde_json::json!({ "state": "stored" })));
}

#[tokio::test]
async fn notices_are_shown_in_pages_without_their_documents() {
    let folder = Folder::new();
    let receiver = Receiver::start(&folder).await;
    let webhook = receiver.webhook();
    let units: Vec<Unit> = (1..=3).map(|uow| unit(uow, "7", 2)).collect();
    for unit in &units {
        store(&webhook, unit).await;
    }
    let page: Value = reqwest::get(format!("{}?limit=2", receiver.url)).await.unwrap().json().await.unwrap();
    let shown = serde_json::json!({
        "unit": units[0].key, "attempt": 1, "uow": 1, "resource": "manifests", "subject": "7", "state": "stored"
    });
    assert_eq!((&page["notices"][0], &page["next"]), (&shown, &2.into()));
    let page: Value = reqwest::get(format!("{}?after=2", receiver.url)).await.unwrap().json().await.unwrap();
    assert_eq!((page["notices"].as_array().unwrap().len(), &page["next"]), (1, &Value::Null));
    let page: Value = reqwest::get(format!("{}?after=9", receiver.url)).await.unwrap().json().await.unwrap();
    assert_eq!(page["notices"], serde_json::json!([]));
    let bad = reqwest::get(format!("{}?after=x", receiver.url)).await.unwrap();
    assert_eq!(bad.status(), StatusCode::BAD_REQUEST);
}
