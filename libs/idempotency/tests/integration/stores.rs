//! The rules of a store, in Postgres, in Redis, and in Postgres with results in Redis. `an_…`: a test of the original.

use std::time::Duration;

use crate::support::{HOUR, World, expiring, operation, wait_until};
use futures_util::future::join_all;
use idempotency::{Claimed, Error, FINISHED, Operation, STARTED, Status, Store};
use jiff::{SignedDuration, Timestamp};

on_every_store! {
    an_pgx_fetch_or_start_twice_is_ready_then_running
    an_pgx_context_success_is_finished_with_its_result
    an_pgx_fail_keeps_the_message_and_no_result
    an_pgx_success_past_the_expiration_is_failed
    an_session_closed_twice_succeeds_once_and_never_fails
    an_s03_every_failure_is_counted_and_the_end_is_dated
    an_s09_of_50_claims_of_a_new_operation_one_wins
    an_s09_of_50_claims_of_a_failed_operation_one_wins
    an_s09_of_50_claims_of_a_timed_out_operation_one_wins
    an_s09_who_was_overtaken_can_change_nothing
    an_s11_an_operation_without_limits_replays_its_result
    an_s12_another_payload_is_refused_at_every_stage
    an_s12_a_clients_clock_does_not_put_off_the_expiration
    an_s13_an_empty_or_endless_name_is_refused
    an_operation_that_came_too_late_is_not_tracked
    a_finished_operation_is_answered_even_after_it_has_expired
    a_late_result_is_taken_while_nobody_else_has_claimed
    the_same_key_under_another_target_is_another_operation
    durations_without_end_are_bounded
    bytes_and_texts_come_back_as_they_were
    an_operation_is_running_for_as_long_as_its_claim_holds
}

async fn an_pgx_fetch_or_start_twice_is_ready_then_running(world: &impl World) {
    let request = expiring("key");
    let claim = world.claim(&request).await;
    assert_eq!((claim.found, claim.token, claim.recovery_point.as_str()), (Status::Ready, 1, STARTED));
    assert_eq!(claim.payload, request.payload);
    let first = world.find(&request).await;
    assert_eq!(first.status, Status::Running);

    let Err(Error::StillRunning { target, key, retry_after: Some(left) }) = world.store().claim(&request).await else {
        panic!("it is running");
    };
    assert_eq!((target, key), (request.target.clone(), request.key.clone()));
    assert!(!left.is_zero() && left <= HOUR, "{left:?}");

    let second = world.find(&request).await;
    assert_eq!((second.started_at, second.timeout_at), (first.started_at, first.timeout_at));
    assert_eq!((second.expires_at, &second.payload), (first.expires_at, &first.payload));
    assert_eq!((second.result, second.error_message, second.finished_at), (None, None, None));
    // Both count from the same moment, because the operation has no reference time.
    assert_eq!(second.expires_at, Some(second.reference_time + SignedDuration::from_hours(1)));
    assert_eq!(second.timeout_at, Some(second.started_at + SignedDuration::from_hours(1)));
}

async fn an_pgx_context_success_is_finished_with_its_result(world: &impl World) {
    let request = operation("key");
    world.finish(&request, b"Ok!").await;
    let tracked = world.find(&request).await;
    assert_eq!((tracked.status, tracked.recovery_point.as_str()), (Status::Finished, FINISHED));
    assert_eq!((tracked.result.as_deref(), tracked.error_message), (Some(&b"Ok!"[..]), None));
    assert_eq!(world.store().claim(&request).await.unwrap(), Claimed::Finished(b"Ok!".to_vec()));
}

async fn an_pgx_fail_keeps_the_message_and_no_result(world: &impl World) {
    let request = operation("key");
    world.fail(&request).await;
    let tracked = world.find(&request).await;
    assert_eq!(tracked.status, Status::Failed);
    assert_eq!((tracked.result, tracked.error_message.as_deref()), (None, Some("Boom!")));
    // It may be tried again at once.
    assert_eq!(tracked.time_left, Some(Duration::ZERO));
    let claim = world.claim(&request).await;
    assert_eq!((claim.found, claim.token), (Status::Failed, 2));
}

async fn an_pgx_success_past_the_expiration_is_failed(world: &impl World) {
    let request = expiring("key");
    let claim = world.claim(&request).await;
    world.expire(&request).await;
    // AN-S10: a result that comes too late is an error.
    assert!(matches!(world.store().finish(&claim, b"Ok!").await, Err(Error::Expired { .. })));
    let tracked = world.find(&request).await;
    assert_eq!((tracked.status, tracked.error_message.as_deref()), (Status::Failed, Some("Operation expired")));
    assert_eq!((tracked.result, tracked.finished_at, tracked.error_count), (None, None, 1));
    assert!(matches!(world.store().claim(&request).await, Err(Error::Expired { .. })));
}

async fn an_session_closed_twice_succeeds_once_and_never_fails(world: &impl World) {
    let request = operation("key");
    let claim = world.claim(&request).await;
    world.store().finish(&claim, b"Ok!").await.unwrap();
    let finished = world.find(&request).await;
    assert!(matches!(world.store().finish(&claim, b"again").await, Err(Error::Fenced)));
    assert!(!world.store().fail(&claim, "Boom!").await.unwrap());
    let mut unchanged = world.find(&request).await;
    unchanged.time_left = finished.time_left;
    assert_eq!(unchanged, finished);
}

async fn an_s03_every_failure_is_counted_and_the_end_is_dated(world: &impl World) {
    let request = operation("key");
    for failed_count in 1..=3 {
        world.fail(&request).await;
        let tracked = world.find(&request).await;
        assert_eq!((tracked.error_count, tracked.finished_at), (failed_count, None));
    }
    world.finish(&request, b"Ok!").await;
    let tracked = world.find(&request).await;
    assert_eq!((tracked.error_count, tracked.token, tracked.error_message), (3, 4, None));
    let finished_at = tracked.finished_at.expect("it is finished");
    assert!(tracked.created_at <= tracked.started_at && tracked.started_at <= finished_at);
}

/// Fifty claims at once, each from a separate store.
async fn assert_one_wins(world: &impl World, request: &Operation, found: Status) {
    let stores: Vec<_> = (0..50).map(|_| world.store()).collect();
    let claims = stores.into_iter().map(|store| {
        let request = request.clone();
        tokio::spawn(async move { store.claim(&request).await })
    });
    let (mut won, mut running_count) = (Vec::new(), 0);
    for claimed in join_all(claims.collect::<Vec<_>>()).await {
        match claimed.unwrap() {
            Ok(Claimed::Mine(claim)) => won.push(claim),
            Err(Error::StillRunning { .. }) => running_count += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((won.len(), running_count), (1, 49));
    assert_eq!(won[0].found, found);
    assert_eq!(world.find(request).await.token, won[0].token);
}

async fn an_s09_of_50_claims_of_a_new_operation_one_wins(world: &impl World) {
    assert_one_wins(world, &operation("key"), Status::Ready).await;
}

async fn an_s09_of_50_claims_of_a_failed_operation_one_wins(world: &impl World) {
    world.fail(&operation("key")).await;
    assert_one_wins(world, &operation("key"), Status::Failed).await;
}

async fn an_s09_of_50_claims_of_a_timed_out_operation_one_wins(world: &impl World) {
    world.claim(&Operation { timeout: Some(Duration::ZERO), ..operation("key") }).await;
    assert_one_wins(world, &operation("key"), Status::Running).await;
}

async fn an_s09_who_was_overtaken_can_change_nothing(world: &impl World) {
    let request = operation("key");
    let old = world.claim(&request).await;
    world.time_out(&request).await;
    let new = world.claim(&request).await;
    assert_eq!((old.token, new.token, old.id), (1, 2, new.id));

    assert!(matches!(world.store().finish(&old, b"old").await, Err(Error::Fenced)));
    assert!(!world.store().fail(&old, "old").await.unwrap());
    let tracked = world.find(&request).await;
    assert_eq!((tracked.status, tracked.error_count), (Status::Running, 0));
    world.store().finish(&new, b"new").await.unwrap();
    assert_eq!(world.find(&request).await.result.as_deref(), Some(&b"new"[..]));
}

async fn an_s11_an_operation_without_limits_replays_its_result(world: &impl World) {
    let request = Operation { timeout: None, expiration: None, ..operation("key") };
    let claim = world.claim(&request).await;
    let tracked = world.find(&request).await;
    assert_eq!((tracked.timeout_at, tracked.expires_at, tracked.time_left), (None, None, None));
    assert!(matches!(world.store().claim(&request).await, Err(Error::StillRunning { retry_after: None, .. })));
    assert_eq!(world.store().fail_timed_out(10).await.unwrap(), 0);
    world.store().finish(&claim, b"Ok!").await.unwrap();
    assert_eq!(world.store().claim(&request).await.unwrap(), Claimed::Finished(b"Ok!".to_vec()));
}

async fn an_s12_another_payload_is_refused_at_every_stage(world: &impl World) {
    let request = operation("key");
    let other = Operation { payload: b"another".to_vec(), ..request.clone() };
    let assert_refused = async || {
        let Err(Error::Mismatch { target, key }) = world.store().claim(&other).await else { panic!("not refused") };
        assert_eq!((target, key), (request.target.clone(), request.key.clone()));
    };
    let claim = world.claim(&request).await;
    assert_refused().await;
    world.time_out(&request).await;
    assert_refused().await;
    assert!(world.store().fail(&claim, "Boom!").await.unwrap());
    assert_refused().await;
    world.finish(&request, b"Ok!").await;
    assert_refused().await;
    assert_eq!(world.find(&request).await.payload, request.payload);
}

async fn an_s12_a_clients_clock_does_not_put_off_the_expiration(world: &impl World) {
    let ahead = Timestamp::now() + SignedDuration::from_hours(24 * 365);
    let request = Operation { reference_time: Some(ahead), ..expiring("key") };
    world.claim(&request).await;
    let tracked = world.find(&request).await;
    assert_eq!(tracked.reference_time, tracked.created_at);
    assert_eq!(tracked.expires_at, Some(tracked.created_at + SignedDuration::from_hours(1)));
    // A second request does not put it off either, whatever its clock says.
    world.store().claim(&expiring("key")).await.unwrap_err();
    assert_eq!(world.find(&request).await.expires_at, tracked.expires_at);
    // A reference time in the past brings the expiration forward.
    let past = tracked.created_at - SignedDuration::from_mins(30);
    let request = Operation { reference_time: Some(past), ..expiring("past") };
    world.claim(&request).await;
    assert_eq!(world.find(&request).await.expires_at, Some(past + SignedDuration::from_hours(1)));
}

async fn an_s13_an_empty_or_endless_name_is_refused(world: &impl World) {
    let long = "x".repeat(501);
    for (target, key) in [("", "key"), ("target", ""), (&long, "key"), ("target", &long[..256]), ("target", "\0")] {
        let request = Operation::new(target, key, "", HOUR);
        assert!(matches!(world.store().claim(&request).await, Err(Error::Invalid(_))), "{target}, {key}");
    }
    // Characters count, not bytes.
    world.claim(&Operation::new("ü".repeat(500), "ü".repeat(255), "", HOUR)).await;
}

async fn an_operation_that_came_too_late_is_not_tracked(world: &impl World) {
    let late = Timestamp::now() - SignedDuration::from_hours(2);
    let request = Operation { reference_time: Some(late), ..expiring("key") };
    assert!(matches!(world.store().claim(&request).await, Err(Error::Expired { .. })));
    assert_eq!(world.store().find(&request.target, &request.key).await.unwrap(), None);
}

async fn a_finished_operation_is_answered_even_after_it_has_expired(world: &impl World) {
    let request = expiring("key");
    world.finish(&request, b"Ok!").await;
    world.expire(&request).await;
    assert!(world.find(&request).await.is_expired);
    assert_eq!(world.store().claim(&request).await.unwrap(), Claimed::Finished(b"Ok!".to_vec()));
}

async fn a_late_result_is_taken_while_nobody_else_has_claimed(world: &impl World) {
    let request = operation("key");
    let claim = world.claim(&request).await;
    world.time_out(&request).await;
    world.store().finish(&claim, b"Ok!").await.unwrap();
    assert_eq!(world.store().claim(&request).await.unwrap(), Claimed::Finished(b"Ok!".to_vec()));
}

async fn the_same_key_under_another_target_is_another_operation(world: &impl World) {
    let (rides, wallets) = (operation("key"), Operation { target: "[POST]/wallets".to_owned(), ..operation("key") });
    world.finish(&rides, b"ride").await;
    world.finish(&wallets, b"wallet").await;
    assert_eq!(world.store().claim(&rides).await.unwrap(), Claimed::Finished(b"ride".to_vec()));
    assert_eq!(world.store().claim(&wallets).await.unwrap(), Claimed::Finished(b"wallet".to_vec()));
}

async fn durations_without_end_are_bounded(world: &impl World) {
    let request = Operation { timeout: Some(Duration::MAX), expiration: Some(Duration::MAX), ..operation("key") };
    let claim = world.claim(&request).await;
    let tracked = world.find(&request).await;
    let century = SignedDuration::from_hours(100 * 365 * 24);
    assert_eq!(tracked.expires_at, Some(tracked.created_at + century));
    assert!(tracked.time_left > Some(HOUR));
    world.store().finish(&claim, b"Ok!").await.unwrap();
}

async fn bytes_and_texts_come_back_as_they_were(world: &impl World) {
    let bytes: Vec<u8> = (0..=255).collect();
    let request = Operation::new("[GET]/a}:b{%7D ü", "key: \"ü\"", bytes.clone(), HOUR);
    let claim = world.claim(&request).await;
    assert!(world.store().fail(&claim, "Boom!\0 \u{1F4A5}").await.unwrap());
    let tracked = world.find(&request).await;
    assert_eq!((tracked.target, tracked.key), (request.target.clone(), request.key.clone()));
    assert_eq!(tracked.error_message.as_deref(), Some("Boom!\u{FFFD} \u{1F4A5}"));
    world.finish(&request, &bytes).await;
    assert_eq!(world.store().claim(&request).await.unwrap(), Claimed::Finished(bytes));
    // An empty result is a result too.
    world.finish(&operation("empty"), b"").await;
    assert_eq!(world.store().claim(&operation("empty")).await.unwrap(), Claimed::Finished(Vec::new()));
}

async fn an_operation_is_running_for_as_long_as_its_claim_holds(world: &impl World) {
    let request = Operation { timeout: Some(Duration::from_millis(50)), ..operation("key") };
    let first = world.claim(&request).await;
    // No sweeper runs and the test does not sleep: the server's clock alone frees the operation.
    wait_until("the claim has run out", async || world.find(&request).await.time_left == Some(Duration::ZERO)).await;
    let second = world.claim(&Operation { timeout: Some(HOUR), ..request.clone() }).await;
    assert_eq!((second.found, second.token), (Status::Running, first.token + 1));
}
