//! Work in a phase: its effects in Postgres and its result are stored together, or neither (AN-13, AN-S01, AN-S07).

use std::time::Duration;

use crate::support::{PostgresWorld, World, expiring, operation, wait_until};
use idempotency::{
    Claim, Claimed, Error, Operation, Outcome, Phase, PhaseEnd, Phases, PostgresStore, Runner, STARTED, Status, claim,
};
use tokio_postgres::error::SqlState;

async fn world() -> (PostgresWorld, Runner<PostgresStore>) {
    let world = PostgresWorld::new().await;
    world.client().await.batch_execute("CREATE TABLE effects (n INT NOT NULL)").await.unwrap();
    let manager = Runner::new(world.store());
    (world, manager)
}

async fn write_effect(phase: &Phase<'_>) -> Result<(), tokio_postgres::Error> {
    phase.tx().execute("INSERT INTO effects VALUES (1)", &[]).await.map(|_| ())
}

async fn effect_count(world: &PostgresWorld) -> i64 {
    world.number("SELECT count(*) FROM effects").await
}

async fn assert_failed(world: &PostgresWorld, request: &Operation, message: &str) {
    let tracked = world.find(request).await;
    assert_eq!((tracked.status, tracked.error_count, tracked.result), (Status::Failed, 1, None));
    assert_eq!(tracked.error_message.as_deref(), Some(message));
    assert_eq!(effect_count(world).await, 0);
}

#[tokio::test]
async fn an_13_effects_and_result_are_kept_together_and_replayed() {
    let (world, manager) = world().await;
    let request = operation("key");
    // In a task, as in a server.
    let called = tokio::spawn({
        let (manager, request) = (manager.clone(), request.clone());
        async move {
            manager
                .call_in_phase(&request, async |phase| {
                    write_effect(phase).await?;
                    Ok::<_, tokio_postgres::Error>(b"Ok!".to_vec())
                })
                .await
        }
    });
    assert_eq!(called.await.unwrap().unwrap(), Outcome { result: b"Ok!".to_vec(), is_replayed: false });
    assert_eq!(effect_count(&world).await, 1);

    let again = manager.call_in_phase::<String>(&request, async |_| panic!("the work is done")).await.unwrap();
    assert_eq!(again, Outcome { result: b"Ok!".to_vec(), is_replayed: true });
    assert_eq!(effect_count(&world).await, 1);
    assert_eq!(world.find(&request).await.error_count, 0);
}

#[tokio::test]
async fn an_s01_effects_are_rolled_back_when_the_work_fails() {
    let (world, manager) = world().await;
    let request = operation("key");
    let work = async |phase: &Phase<'_>| {
        write_effect(phase).await.unwrap();
        Err("Boom!")
    };
    assert_eq!(manager.call_in_phase(&request, work).await.unwrap_err().to_string(), "Boom!");
    assert_failed(&world, &request, "Boom!").await;

    let work = async |phase: &Phase<'_>| write_effect(phase).await.map(|()| b"Ok!".to_vec());
    assert!(!manager.call_in_phase(&request, work).await.unwrap().is_replayed);
    assert_eq!(effect_count(&world).await, 1);
}

#[tokio::test]
async fn an_s01_effects_are_rolled_back_when_the_work_panics() {
    let (world, manager) = world().await;
    let request = operation("key");
    let work = async |phase: &Phase<'_>| {
        write_effect(phase).await.unwrap();
        panic!("Boom!")
    };
    let error = manager.call_in_phase::<String>(&request, work).await.unwrap_err();
    assert_eq!(error.to_string(), r#"Got panic "Boom!""#);
    assert_failed(&world, &request, r#"Got panic "Boom!""#).await;
}

#[tokio::test]
async fn an_s01_effects_are_rolled_back_when_the_work_outlives_its_expiration() {
    let (world, manager) = world().await;
    let request = expiring("key");
    let work = async |phase: &Phase<'_>| {
        write_effect(phase).await?;
        // This phase has locked the row, so only its own transaction can move the time.
        let expire = "UPDATE tracked_operations SET expires_at = now() - INTERVAL '1 hour'";
        phase.tx().execute(expire, &[]).await?;
        Ok::<_, tokio_postgres::Error>(b"Ok!".to_vec())
    };
    let error = manager.call_in_phase(&request, work).await.unwrap_err();
    assert!(matches!(error, Error::Expired { .. }), "{error:?}");
    assert_failed(&world, &request, "Operation expired").await;
}

#[tokio::test]
async fn an_s01_effects_are_rolled_back_when_the_caller_is_dropped() {
    let (world, manager) = world().await;
    let request = operation("key");
    let (written, was_written) = tokio::sync::oneshot::channel();
    let work = async |phase: &Phase<'_>| {
        write_effect(phase).await.unwrap();
        written.send(()).unwrap();
        std::future::pending::<Result<Vec<u8>, String>>().await
    };
    tokio::select! {
        _ = manager.call_in_phase(&request, work) => panic!("the work never ends"),
        written = was_written => written.unwrap(),
    }
    // No process is left to record the failure: the claim runs out.
    assert_eq!(effect_count(&world).await, 0);
    assert_eq!(world.find(&request).await.status, Status::Running);
    world.time_out(&request).await;
    assert_eq!(world.claim(&request).await.found, Status::Running);
}

#[tokio::test]
async fn work_that_swallows_a_failed_statement_is_not_finished() {
    let (world, manager) = world().await;
    let request = operation("key");
    let work = async |phase: &Phase<'_>| {
        write_effect(phase).await.unwrap();
        phase.tx().execute("SELECT 1 / 0", &[]).await.unwrap_err();
        Ok::<_, String>(b"Ok!".to_vec())
    };
    let error = manager.call_in_phase(&request, work).await.unwrap_err();
    let Error::Postgres(error) = error else { panic!("{error:?}") };
    assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    assert_failed(&world, &request, "query failed").await;
}

#[tokio::test]
async fn an_s07_no_statement_takes_longer_than_the_claim_holds() {
    let (world, manager) = world().await;
    let request = Operation { timeout: Some(Duration::from_secs(3)), ..operation("key") };
    let work = async |phase: &Phase<'_>| {
        write_effect(phase).await?;
        phase.tx().execute("SELECT pg_sleep(600)", &[]).await?;
        Ok::<_, tokio_postgres::Error>(Vec::new())
    };
    let error = manager.call_in_phase(&request, work).await.unwrap_err();
    let Error::Failed(error) = error else { panic!("{error:?}") };
    let error = error.downcast::<tokio_postgres::Error>().unwrap();
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
    assert_eq!(effect_count(&world).await, 0);
    assert_eq!(world.find(&request).await.status, Status::Failed);
    // The limit ended with the phase.
    assert_eq!(statement_timeout(&*world.client().await).await, "0");
}

async fn statement_timeout(client: &deadpool_postgres::ClientWrapper) -> String {
    client.query_one("SHOW statement_timeout", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn an_s07_without_a_time_out_the_sessions_own_limit_stays() {
    let (world, _) = world().await;
    let mut client = world.client().await;
    client.batch_execute("SET statement_timeout = 30000").await.unwrap();
    for (key, timeout, limit) in [("never", None, "30s"), ("long", Some(Duration::MAX), "2147483647ms")] {
        let request = Operation { timeout, ..operation(key) };
        let Claimed::Mine(mut claim) = claim(&client, &request).await.unwrap() else { panic!("it is new") };
        let phase = claim.begin(&mut client).await.unwrap();
        let row = phase.tx().query_one("SHOW statement_timeout", &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), limit);
        phase.advance("next").await.unwrap();
        assert_eq!(claim.recovery_point, "next");
    }
}

#[tokio::test]
async fn who_was_overtaken_begins_no_phase() {
    let (world, _) = world().await;
    let request = operation("key");
    let mut client = world.client().await;
    let mut old = world.claim(&request).await;
    world.time_out(&request).await;
    assert!(matches!(old.begin(&mut client).await, Err(Error::Fenced)), "its time is up");
    let mut new = world.claim(&request).await;
    assert!(matches!(old.begin(&mut client).await, Err(Error::Fenced)), "a second process has claimed it");
    new.begin(&mut client).await.unwrap().finish(b"Ok!".to_vec()).await.unwrap();
    assert!(matches!(new.begin(&mut client).await, Err(Error::Fenced)), "it is finished");
}

#[tokio::test]
async fn nobody_waits_for_an_open_phase_to_be_told_that_it_is_running() {
    let (world, _) = world().await;
    let request = operation("key");
    let mut client = world.client().await;
    let mut held = world.claim(&request).await;
    let phase = held.begin(&mut client).await.unwrap();
    let asking = tokio::time::timeout(Duration::from_secs(30), async { claim(&*world.client().await, &request).await });
    assert!(matches!(asking.await.expect("it waits for the phase"), Err(Error::StillRunning { .. })));
    phase.finish(b"Ok!".to_vec()).await.unwrap();
    assert_eq!(claim(&*world.client().await, &request).await.unwrap(), Claimed::Finished(b"Ok!".to_vec()));
}

#[tokio::test]
async fn a_phase_that_outlives_its_claim_is_kept_when_it_was_let_in() {
    let (world, _) = world().await;
    let request = Operation { timeout: Some(Duration::from_secs(3)), ..operation("key") };
    let mut client = world.client().await;
    let mut held = world.claim(&request).await;
    let phase = held.begin(&mut client).await.unwrap();
    wait_until("the claim has run out", async || world.find(&request).await.time_left == Some(Duration::ZERO)).await;
    // Its row is locked, so no process has claimed it, and no sweeper has touched it.
    assert_eq!(idempotency::fail_timed_out(&*world.client().await, 10).await.unwrap(), 0);
    phase.finish(b"Ok!".to_vec()).await.unwrap();
    assert_eq!(claim(&*world.client().await, &request).await.unwrap(), Claimed::Finished(b"Ok!".to_vec()));
}

/// Two phases with one effect each. The second one fails at first.
struct TwoPhases {
    pool: deadpool_postgres::Pool,
    troubles: std::sync::Mutex<Vec<&'static str>>,
}

impl Phases for TwoPhases {
    type Error = Error;

    async fn next_phase(&self, claim: &mut Claim) -> Result<PhaseEnd, Error> {
        let mut client = self.pool.get().await?;
        let is_first = claim.recovery_point == STARTED;
        let phase = claim.begin(&mut client).await?;
        write_effect(&phase).await?;
        if is_first {
            return phase.advance("half").await;
        }
        let trouble = self.troubles.lock().unwrap().pop();
        match trouble {
            Some("conflict") => {
                let conflict = "DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = 'serialization_failure'; END $$";
                phase.tx().batch_execute(conflict).await?;
            }
            Some("panic") => panic!("Boom!"),
            Some(other) => return Err(Error::Failed(other.into())),
            None => {}
        }
        phase.finish(b"Ok!".to_vec()).await
    }
}

#[tokio::test]
async fn work_of_several_phases_goes_on_where_it_stopped() {
    let (world, manager) = world().await;
    let request = operation("key");
    // The newest row first.
    let troubles = [&["panic", "an outage"][..], &["conflict"; 9]].concat();
    let work = TwoPhases { pool: world.pool.clone(), troubles: troubles.into() };
    let error = manager.call_in_phases(&request, &work).await.unwrap_err();
    assert!(error.is_conflict(), "five times is enough: {error:?}");
    assert_eq!(work.troubles.lock().unwrap().len(), 6);
    let error = manager.call_in_phases(&request, &work).await.unwrap_err();
    assert_eq!(error.to_string(), "an outage", "after four conflicts more");
    let tracked = world.find(&request).await;
    assert_eq!((tracked.status, tracked.recovery_point.as_str(), tracked.error_count), (Status::Failed, "half", 2));
    assert_eq!(tracked.error_message.as_deref(), Some("an outage"));
    assert_eq!(manager.call_in_phases(&request, &work).await.unwrap_err().to_string(), r#"Got panic "Boom!""#);
    assert_eq!(effect_count(&world).await, 1, "of the phase that was kept");

    for is_replayed in [false, true] {
        let outcome = manager.call_in_phases(&request, &work).await.unwrap();
        assert_eq!(outcome, Outcome { result: b"Ok!".to_vec(), is_replayed });
        assert_eq!(effect_count(&world).await, 2);
    }
}

#[tokio::test]
async fn a_conflict_is_known_wherever_it_comes_from() {
    let (_world, manager) = world().await;
    let work = async |phase: &Phase<'_>| {
        let conflict = "DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = 'deadlock_detected'; END $$";
        phase.tx().batch_execute(conflict).await.map(|()| Vec::new())
    };
    let error = manager.call_in_phase(&operation("key"), work).await.unwrap_err();
    assert!(matches!(error, Error::Failed(_)) && error.is_conflict(), "{error:?}");
    assert!(!Error::Failed("conflict".into()).is_conflict());
}
