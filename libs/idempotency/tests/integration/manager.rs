//! The result of a call, in every state of its operation. `an_manager_…`: a test of the original, on real stores.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::support::{World, expiring, operation};
use idempotency::{Error, Operation, Outcome, Runner, Status, Store};
use jiff::{SignedDuration, Timestamp};

on_every_store! {
    an_manager_expired_operation
    an_manager_already_finished
    an_manager_already_expired_and_finished
    an_manager_already_expired_and_ready
    an_manager_already_expired_and_running
    an_manager_already_expired_and_failed
    an_manager_already_still_running
    an_manager_never_timeout_running
    an_manager_never_expired_and_finished
    an_manager_never_expired_and_ready
    an_manager_never_expired_and_running_timed_out
    an_manager_never_expired_and_failed
    an_manager_not_expired_and_finished
    an_manager_not_expired_and_ready
    an_manager_not_expired_and_running_timed_out
    an_manager_not_expired_and_failed
    an_manager_success
    an_manager_failing
    an_manager_panic
    a_panic_before_the_first_await_is_caught_as_well
    an_s10_work_that_outlives_its_expiration_is_an_error
    an_s09_work_that_was_overtaken_is_an_error
    the_caller_gets_the_works_own_error
    fifty_callers_at_once_do_the_work_once
}

/// Calls with work that must not run.
async fn call_in_vain(world: &impl World, request: &Operation) -> Result<Outcome, Error> {
    let manager = Runner::new(world.store());
    manager.call::<String>(request, async || panic!("the work is done")).await
}

/// Calls with work that succeeds.
async fn call(world: &impl World, request: &Operation) -> Outcome {
    let manager = Runner::new(world.store());
    manager.call::<String>(request, async || Ok(b"Ok!".to_vec())).await.unwrap()
}

async fn assert_expired(world: &impl World, request: &Operation) {
    let error = call_in_vain(world, request).await.unwrap_err();
    assert!(matches!(error, Error::Expired { .. }), "{error:?}");
    assert_eq!(error.to_string(), "Operation [POST]/rides expired for key key.");
}

async fn assert_still_running(world: &impl World, request: &Operation) {
    let error = call_in_vain(world, request).await.unwrap_err();
    assert!(matches!(error, Error::StillRunning { .. }), "{error:?}");
    assert_eq!(error.to_string(), "Operation [POST]/rides still running for key key.");
}

async fn assert_replayed(world: &impl World, request: &Operation) {
    let outcome = call_in_vain(world, request).await.unwrap();
    assert_eq!(outcome, Outcome { result: b"stored".to_vec(), is_replayed: true });
}

/// The work is done now, and recorded in the store once.
async fn assert_done(world: &impl World, request: &Operation) {
    let before = world.store().find(&request.target, &request.key).await.unwrap();
    assert_eq!(call(world, request).await, Outcome { result: b"Ok!".to_vec(), is_replayed: false });
    let tracked = world.find(request).await;
    assert_eq!((tracked.status, tracked.result.as_deref()), (Status::Finished, Some(&b"Ok!"[..])));
    let (token, error_count) = before.map_or((0, 0), |before| (before.token, before.error_count));
    assert_eq!((tracked.token, tracked.error_count), (token + 1, error_count));
}

async fn an_manager_expired_operation(world: &impl World) {
    let an_hour_ago = Timestamp::now() - SignedDuration::from_hours(1);
    let request =
        Operation { reference_time: Some(an_hour_ago), expiration: Some(Duration::from_secs(60)), ..operation("key") };
    assert_expired(world, &request).await;
    assert_eq!(world.store().find("[POST]/rides", "key").await.unwrap(), None);
    // The store is not asked, although the operation is finished.
    world.finish(&operation("key"), b"stored").await;
    assert_expired(world, &request).await;
}

async fn an_manager_already_finished(world: &impl World) {
    world.finish(&operation("key"), b"stored").await;
    assert_replayed(world, &operation("key")).await;
}

async fn an_manager_already_expired_and_finished(world: &impl World) {
    world.finish(&expiring("key"), b"stored").await;
    world.expire(&expiring("key")).await;
    assert_replayed(world, &expiring("key")).await;
}

/// It has not been tried yet, and expires after the runner has looked at the clock and before the store does.
async fn an_manager_already_expired_and_ready(world: &impl World) {
    assert_expired(world, &Operation { expiration: Some(Duration::ZERO), ..operation("key") }).await;
    assert_eq!(world.store().find("[POST]/rides", "key").await.unwrap(), None);
}

async fn an_manager_already_expired_and_running(world: &impl World) {
    world.claim(&expiring("key")).await;
    world.expire(&expiring("key")).await;
    assert_expired(world, &expiring("key")).await;
    world.time_out(&expiring("key")).await;
    assert_expired(world, &expiring("key")).await;
}

async fn an_manager_already_expired_and_failed(world: &impl World) {
    world.fail(&expiring("key")).await;
    world.expire(&expiring("key")).await;
    assert_expired(world, &expiring("key")).await;
}

async fn an_manager_already_still_running(world: &impl World) {
    world.claim(&expiring("key")).await;
    assert_still_running(world, &expiring("key")).await;
}

async fn an_manager_never_timeout_running(world: &impl World) {
    let request = Operation { timeout: None, ..operation("key") };
    world.claim(&request).await;
    assert_still_running(world, &request).await;
}

async fn an_manager_never_expired_and_finished(world: &impl World) {
    an_manager_already_finished(world).await;
}

async fn an_manager_never_expired_and_ready(world: &impl World) {
    assert_done(world, &operation("key")).await;
}

async fn an_manager_never_expired_and_running_timed_out(world: &impl World) {
    world.claim(&operation("key")).await;
    world.time_out(&operation("key")).await;
    assert_done(world, &operation("key")).await;
}

async fn an_manager_never_expired_and_failed(world: &impl World) {
    world.fail(&operation("key")).await;
    assert_done(world, &operation("key")).await;
}

async fn an_manager_not_expired_and_finished(world: &impl World) {
    world.finish(&expiring("key"), b"stored").await;
    assert_replayed(world, &expiring("key")).await;
}

async fn an_manager_not_expired_and_ready(world: &impl World) {
    let request = Operation { reference_time: Some(Timestamp::now()), ..expiring("key") };
    assert_done(world, &request).await;
}

async fn an_manager_not_expired_and_running_timed_out(world: &impl World) {
    world.claim(&expiring("key")).await;
    world.time_out(&expiring("key")).await;
    assert_done(world, &expiring("key")).await;
}

async fn an_manager_not_expired_and_failed(world: &impl World) {
    world.fail(&expiring("key")).await;
    assert_done(world, &expiring("key")).await;
}

async fn an_manager_success(world: &impl World) {
    assert_done(world, &operation("key")).await;
    let again = call_in_vain(world, &operation("key")).await.unwrap();
    assert_eq!(again, Outcome { result: b"Ok!".to_vec(), is_replayed: true });
}

async fn an_manager_failing(world: &impl World) {
    let manager = Runner::new(world.store());
    let error = manager.call(&operation("key"), async || Err("Boom!")).await.unwrap_err();
    assert!(matches!(error, Error::Failed(_)), "{error:?}");
    assert_eq!(error.to_string(), "Boom!");
    let tracked = world.find(&operation("key")).await;
    assert_eq!((tracked.status, tracked.error_count), (Status::Failed, 1));
    assert_eq!((tracked.error_message.as_deref(), tracked.result), (Some("Boom!"), None));
    assert_done(world, &operation("key")).await;
}

async fn an_manager_panic(world: &impl World) {
    let manager = Runner::new(world.store());
    let work = async || {
        tokio::task::yield_now().await;
        panic!("Boom!")
    };
    let error = manager.call::<String>(&operation("key"), work).await.unwrap_err();
    assert_eq!(error.to_string(), r#"Got panic "Boom!""#);
    assert!(matches!(error, Error::Panic(text) if text == "Boom!"));
    let tracked = world.find(&operation("key")).await;
    assert_eq!((tracked.status, tracked.error_count), (Status::Failed, 1));
    assert_eq!(tracked.error_message.as_deref(), Some(r#"Got panic "Boom!""#));
    assert_done(world, &operation("key")).await;
}

async fn a_panic_before_the_first_await_is_caught_as_well(world: &impl World) {
    let manager = Runner::new(world.store());
    for (key, value) in [("format", 0), ("value", 1)] {
        let error = manager.call::<String>(&operation(key), || fall(value)).await.unwrap_err();
        let text = if value == 0 { "Got panic \"Boom 0!\"" } else { "Got panic \"something that is no text\"" };
        assert_eq!(error.to_string(), text);
        assert_eq!(world.find(&operation(key)).await.status, Status::Failed);
    }
}

/// Panics while the future is made, not while it runs.
fn fall(value: u32) -> std::future::Ready<Result<Vec<u8>, String>> {
    if value == 0 { panic!("Boom {value}!") } else { std::panic::panic_any(value) }
}

async fn an_s10_work_that_outlives_its_expiration_is_an_error(world: &impl World) {
    let manager = Runner::new(world.store());
    let request = expiring("key");
    let work = async || {
        world.expire(&request).await;
        Ok::<_, String>(b"Ok!".to_vec())
    };
    let error = manager.call(&request, work).await.unwrap_err();
    assert!(matches!(error, Error::Expired { .. }), "{error:?}");
    let tracked = world.find(&request).await;
    assert_eq!((tracked.status, tracked.error_count, tracked.result), (Status::Failed, 1, None));
    assert_eq!(tracked.error_message.as_deref(), Some("Operation expired"));
}

async fn an_s09_work_that_was_overtaken_is_an_error(world: &impl World) {
    let manager = Runner::new(world.store());
    let request = operation("key");
    let work = async || {
        world.time_out(&request).await;
        world.finish(&request, b"overtaken").await;
        Ok::<_, String>(b"Ok!".to_vec())
    };
    assert!(matches!(manager.call(&request, work).await, Err(Error::Fenced)));
    let tracked = world.find(&request).await;
    assert_eq!((tracked.result.as_deref(), tracked.error_count), (Some(&b"overtaken"[..]), 0));
}

async fn the_caller_gets_the_works_own_error(world: &impl World) {
    let manager = Runner::new(world.store());
    let error = manager.call(&operation("key"), async || Err(std::io::Error::other("Boom!"))).await.unwrap_err();
    let Error::Failed(error) = error else { panic!("{error:?}") };
    assert_eq!(error.downcast::<std::io::Error>().unwrap().kind(), std::io::ErrorKind::Other);
}

async fn fifty_callers_at_once_do_the_work_once(world: &impl World) {
    let done_count = Arc::new(AtomicU32::new(0));
    let calls = (0..50).map(|_| {
        let (manager, done_count) = (Runner::new(world.store()), done_count.clone());
        tokio::spawn(async move {
            let work = async || {
                tokio::task::yield_now().await;
                Ok::<_, String>(vec![done_count.fetch_add(1, Ordering::Relaxed) as u8])
            };
            manager.call(&operation("key"), work).await
        })
    });
    let mut fresh_count = 0;
    for called in futures_util::future::join_all(calls.collect::<Vec<_>>()).await {
        match called.unwrap() {
            Ok(outcome) => {
                assert_eq!(outcome.result, [0]);
                fresh_count += u32::from(!outcome.is_replayed);
            }
            Err(error) => assert!(matches!(error, Error::StillRunning { .. }), "{error:?}"),
        }
    }
    assert_eq!((fresh_count, done_count.load(Ordering::Relaxed)), (1, 1));
}
