//! The sweepers, on every store. `an_…`: a test of the original.

use idempotency::{Error, Status, Store};

use crate::support::{RedisWorld, World, expiring, operation};

on_every_store! {
    an_pgx_delete_expired
    an_pgx_fail_expired_still_running
    an_pgx_fail_timed_out_still_running
    a_claim_given_back_by_a_sweeper_is_lost
}

/// Twelve operations: per status two that have expired, one that will expire, and one that never will. A running operation
/// that has expired has timed out as well.
async fn write_twelve(world: &impl World) {
    for status in [Status::Finished, Status::Running, Status::Failed] {
        for kind in ["expired0", "expired1", "later", "never"] {
            let key = format!("{kind}-{}", status.name());
            let request = if kind == "never" { operation(&key) } else { expiring(&key) };
            let claim = world.claim(&request).await;
            match status {
                Status::Finished => world.store().finish(&claim, b"Ok!").await.unwrap(),
                Status::Failed => assert!(world.store().fail(&claim, "Boom!").await.unwrap()),
                Status::Running | Status::Ready => {}
            }
            if kind.starts_with("expired") {
                world.expire(&request).await;
                if status == Status::Running {
                    world.time_out(&request).await;
                }
            }
        }
    }
}

/// How many of the twelve are stored.
async fn count(world: &impl World) -> usize {
    let mut count = 0;
    for status in [Status::Finished, Status::Running, Status::Failed] {
        for kind in ["expired0", "expired1", "later", "never"] {
            let key = format!("{kind}-{}", status.name());
            count += usize::from(world.store().find("[POST]/rides", &key).await.unwrap().is_some());
        }
    }
    count
}

async fn an_pgx_delete_expired(world: &impl World) {
    write_twelve(world).await;
    let store = world.store();
    let mut deleted_counts = Vec::new();
    for (status, count_max) in [
        (Status::Finished, 10),
        (Status::Finished, 10),
        (Status::Running, 1),
        (Status::Running, 1),
        (Status::Running, 1),
        (Status::Failed, 10),
        (Status::Failed, 10),
        (Status::Ready, 10),
    ] {
        deleted_counts.push(store.delete_expired(status, count_max).await.unwrap());
    }
    assert_eq!(deleted_counts, [2, 0, 1, 1, 0, 2, 0, 0]);
    assert_eq!(count(world).await, 6);
    // No index entry of them is left.
    assert_eq!(store.fail_timed_out(10).await.unwrap(), 0);
}

async fn an_pgx_fail_expired_still_running(world: &impl World) {
    write_twelve(world).await;
    assert_eq!(world.store().fail_expired(10).await.unwrap(), 2);
    assert_eq!(world.store().fail_expired(10).await.unwrap(), 0);
    for (key, status) in [("expired0-running", Status::Failed), ("later-running", Status::Running)] {
        assert_eq!(world.find(&operation(key)).await.status, status);
    }
    let tracked = world.find(&operation("expired1-running")).await;
    assert_eq!((tracked.error_message.as_deref(), tracked.error_count), (Some("Operation expired"), 1));
    // Now they count as failed: two more of those may be deleted.
    assert_eq!(world.store().delete_expired(Status::Failed, 10).await.unwrap(), 4);

    for key in ["a", "b"] {
        world.claim(&expiring(key)).await;
        world.expire(&operation(key)).await;
    }
    for failed_count in [1, 1, 0] {
        assert_eq!(world.store().fail_expired(1).await.unwrap(), failed_count);
    }
}

async fn an_pgx_fail_timed_out_still_running(world: &impl World) {
    write_twelve(world).await;
    assert_eq!(world.store().fail_timed_out(10).await.unwrap(), 2);
    assert_eq!(world.store().fail_timed_out(10).await.unwrap(), 0);
    let tracked = world.find(&operation("expired0-running")).await;
    assert_eq!((tracked.status, tracked.error_count), (Status::Failed, 1));
    assert_eq!(tracked.error_message.as_deref(), Some("Operation timed out"));
    assert_eq!(world.find(&operation("never-running")).await.status, Status::Running);

    for key in ["a", "b"] {
        world.claim(&operation(key)).await;
        world.time_out(&operation(key)).await;
    }
    for failed_count in [1, 1, 0] {
        assert_eq!(world.store().fail_timed_out(1).await.unwrap(), failed_count);
    }
    assert_eq!(world.claim(&operation("a")).await.found, Status::Failed);
}

async fn a_claim_given_back_by_a_sweeper_is_lost(world: &impl World) {
    let request = operation("key");
    let claim = world.claim(&request).await;
    world.time_out(&request).await;
    assert_eq!(world.store().fail_timed_out(10).await.unwrap(), 1);
    assert!(matches!(world.store().finish(&claim, b"Ok!").await, Err(Error::Fenced)));
    assert!(!world.store().fail(&claim, "Boom!").await.unwrap());
    assert_eq!(world.find(&request).await.error_count, 1);
}

/// Redis evicts the hash of an operation, and keeps its index entry.
#[tokio::test]
async fn an_evicted_operation_leaves_nothing_that_harms_the_next_of_its_name() {
    let world = RedisWorld::new().await;
    let request = expiring("key");
    world.finish(&request, b"Ok!").await;
    world.expire(&request).await;
    let operation = format!("{}:{{{}}}:{}", world.prefix, request.target, request.key);
    redis::cmd("DEL").arg(operation).exec_async(&mut world.connection().await).await.unwrap();

    world.claim(&request).await;
    assert_eq!(world.store().delete_expired(Status::Finished, 10).await.unwrap(), 0);
    assert_eq!(world.find(&request).await.status, Status::Running);
}
