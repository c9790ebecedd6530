//! Retries with the same key end with one charge, after every fault.

use std::time::Duration;

use payments::ChargeError;

use crate::world::{Folder, Server, fare};

/// The result of the client when `fault` strikes, and the number of charges after it. A retry must return the same charge.
async fn struck_by(fault: &str) -> (ChargeError, usize) {
    let folder = Folder::new();
    let server = Server::start(&folder).await;
    let stripe = server.http.stripe();
    server.http.plan(fault).await;
    let told = stripe.charge(&fare(), "ride-1").await.unwrap_err();
    let charge_count = server.http.charges().await.len();
    let id = stripe.charge(&fare(), "ride-1").await.unwrap().id;
    let charges = server.http.charges().await;
    assert_eq!((charges.len(), charges[0]["id"].as_str()), (1, Some(id.as_str())));
    server.stop().await;
    (told, charge_count)
}

#[tokio::test]
async fn an_error_before_the_charge_leaves_nothing_and_the_key_free() {
    let (told, charge_count) = struck_by("kind=error-before").await;
    let told = told.to_string();
    assert!(told.starts_with("payments unavailable: An unknown error occurred. (request req_"), "{told}");
    assert_eq!(charge_count, 0);
}

#[tokio::test]
async fn an_error_after_the_charge_is_mended_by_a_retry() {
    let (told, charge_count) = struck_by("{\"kind\":\"error-after\",\"count\":1}").await;
    let told = told.to_string();
    assert!(told.starts_with("payments unavailable: An unknown error occurred. (request req_"), "{told}");
    assert_eq!(charge_count, 1);
}

#[tokio::test]
async fn a_charge_that_is_never_answered_is_found_by_a_retry() {
    let (told, charge_count) = struck_by("kind=time-out").await;
    assert!(matches!(&told, ChargeError::Unavailable { message } if message.contains("no answer")), "{told:?}");
    assert_eq!(charge_count, 1);
}

#[tokio::test]
async fn a_charge_whose_client_left_is_made_all_the_same() {
    // The charge takes longer than the client waits. Until it is made, the server refuses retries because the key is in use.
    let folder = Folder::new();
    let server = Server::start(&folder).await;
    let stripe = server.http.stripe();
    server.http.plan("kind=slow&ms=4000").await;
    let mut attempt_count = 1;
    while stripe.charge(&fare(), "ride-1").await.is_err() {
        attempt_count += 1;
        assert!(attempt_count < 600, "the key is in use for ever");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(attempt_count > 1, "it was not slow");
    assert_eq!(server.http.charges().await.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_plan_strikes_as_often_as_it_says() {
    let folder = Folder::new();
    let server = Server::start(&folder).await;
    let stripe = server.http.stripe();
    server.http.plan("kind=error-before&count=2").await;
    for key in ["ride-1", "ride-2"] {
        assert!(stripe.charge(&fare(), key).await.is_err());
    }
    assert!(stripe.charge(&fare(), "ride-3").await.is_ok());
    assert_eq!(server.http.post("/_faults", None, "kind=flood").await.status, 400);
    server.stop().await;
}

#[tokio::test]
async fn faults_by_dice_charge_nobody_twice() {
    let folder = Folder::new();
    let server = Server::with(&folder, &["--fault-rate", "0.3", "--fault-seed", "7"]).await;
    let stripe = server.http.stripe_that_waits(Duration::from_millis(200));
    let mut failure_count = 0;
    for number in 0..30 {
        let key = format!("ride-{number}");
        while stripe.charge(&fare(), &key).await.is_err() {
            failure_count += 1;
        }
    }
    assert!(failure_count > 0, "no fault struck");
    assert_eq!(server.http.charges().await.len(), 30);
    server.stop().await;
}

#[tokio::test]
async fn nobody_plans_faults_where_they_are_not_wanted() {
    let folder = Folder::new();
    let server = Server::with(&folder, &["--fault-rate", "0"]).await;
    assert_eq!(server.http.post("/_faults", None, "kind=error-before").await.status, 404);
    server.stop().await;
}

#[tokio::test]
async fn a_pending_charge_is_paid_or_declined_later_and_a_retry_sees_it() {
    for (kind, told) in [("pending", None), ("pending-then-declined", Some("Your card was declined."))] {
        let folder = Folder::new();
        let server = Server::start(&folder).await;
        let stripe = server.http.stripe();
        server.http.plan(&format!("kind={kind}&ms=3600000")).await;
        let ChargeError::Pending { charge_id } = stripe.charge(&fare(), "ride-1").await.unwrap_err() else {
            panic!("{kind}: it is not paid yet")
        };
        assert_eq!(stripe.find(&fare(), 0).await.unwrap().unwrap().id, charge_id);
        // A charge that is settled at once: the first response says pending all the same.
        server.http.plan(&format!("kind={kind}&ms=0")).await;
        let settled = stripe.charge(&fare(), "ride-2").await;
        match told {
            None => assert!(settled.unwrap().is_paid()),
            Some(message) => assert_eq!(settled, Err(ChargeError::Declined { message: message.to_owned() })),
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn refusals_are_told_apart_and_charge_nothing() {
    let folder = Folder::new();
    let server = Server::start(&folder).await;
    let stripe = server.http.stripe();
    for (kind, told) in [
        ("refused", "refused: Your"),
        ("rate-limited", "payments unavailable: "),
        ("error-for-good", "no answer under this key: "),
    ] {
        server.http.plan(&format!("kind={kind}")).await;
        let error = stripe.charge(&fare(), "ride-1").await.unwrap_err().to_string();
        assert!(error.starts_with(told) && error.contains("(request req_"), "{kind}: {error}");
    }
    assert_eq!(server.http.charges().await.len(), 0);
    assert!(stripe.charge(&fare(), "ride-1").await.is_ok());
    server.stop().await;
}

#[tokio::test]
async fn a_charge_is_found_by_its_metadata_among_others() {
    let folder = Folder::new();
    let server = Server::start(&folder).await;
    let stripe = server.http.stripe();
    assert_eq!(stripe.find(&fare(), 0).await, Ok(None));
    let made = stripe.charge(&fare(), "ride-1").await.unwrap();
    for number in 0..120 {
        let form = format!("amount=50&currency=usd&customer=cus_good&metadata[charge_key]=other-{number}");
        assert_eq!(server.http.post("/v1/charges", None, &form).await.status, 200);
    }
    assert_eq!(stripe.find(&fare(), 0).await, Ok(Some(made.clone())), "it is on the second page");
    assert_eq!(stripe.show(&made.id).await, Ok(Some(made)));
    assert_eq!(stripe.show("ch_nobody").await, Ok(None));
    // In ten years.
    let later = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64 + 315_360_000;
    assert_eq!(stripe.find(&fare(), later).await, Ok(None));
    server.stop().await;
}

#[tokio::test]
async fn forgotten_keys_charge_again() {
    let folder = Folder::new();
    let server = Server::start(&folder).await;
    let stripe = server.http.stripe();
    let first = stripe.charge(&fare(), "ride-1").await.unwrap();
    assert_eq!(server.http.post("/_forget-keys", None, "").await.status, 200);
    assert_ne!(stripe.charge(&fare(), "ride-1").await.unwrap().id, first.id);
    server.stop().await;
}
