//! Faults of processes: SIGKILL, SIGSTOP, death at a named point, and a second process with the same name.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use monitor::ORDER_HEADER;
use nix::sys::signal::Signal;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::Fault;
use crate::fleet::Slot;
use crate::world::{PAYMENTS_KEY, World};

/// How long a process may take to reach the point at which it dies. Traffic never ends, so it is short.
const DEATH_WAIT: Duration = Duration::from_secs(15);

/// The longest stop of the receiver of notices. A container waits for five seconds, and then undoes what was not answered: so the
/// receiver gets the store and its undo together.
const NOTICES_STOP_MAX_MS: u64 = 15_000;

async fn victim(world: &World, fault: Fault, rng: &mut StdRng) -> Result<Arc<Slot>> {
    use Fault as F;
    Ok(match fault {
        F::KillApi | F::StopApi | F::DieBooking => Arc::clone(&world.apis[rng.random_range(0..world.apis.len())]),
        F::KillProjector | F::StopProjector | F::TwinProjector => Arc::clone(&world.projector),
        F::KillReaper => Arc::clone(&world.reaper),
        F::KillCompleter => Arc::clone(&world.completer),
        F::KillReceipts => Arc::clone(&world.receipts),
        F::KillPayments | F::StopPayments => Arc::clone(&world.payments),
        F::KillContainer | F::StopContainer => Arc::clone(&world.containers.pair[rng.random_range(0..2)]),
        F::KillNotices | F::StopNotices => Arc::clone(&world.containers.notices),
        F::KillLeader | F::StopLeader | F::DieAfterAssign | F::DieMidPipeline | F::DieAfterPublish | F::TwinLeader => {
            Arc::clone(&world.streamers[world.leader().await?])
        }
        F::KillStandby | F::StopStandby => Arc::clone(&world.streamers[1 - world.leader().await?]),
        _ => {
            let consumers: Vec<_> = world.folding().collect();
            Arc::clone(consumers[rng.random_range(0..consumers.len())])
        }
    })
}

pub(crate) async fn kill(world: &World, fault: Fault, rng: &mut StdRng) -> Result<String> {
    let slot = victim(world, fault, rng).await?;
    let _turn = slot.turn.lock().await;
    slot.signal(Signal::SIGKILL);
    Ok(slot.spec.name.clone())
}

pub(crate) async fn stop(world: &World, fault: Fault, rng: &mut StdRng) -> Result<String> {
    let slot = victim(world, fault, rng).await?;
    let _turn = slot.turn.lock().await;
    let longest_ms = if fault == Fault::StopNotices { NOTICES_STOP_MAX_MS } else { 5000 };
    let pause = Duration::from_millis(rng.random_range(300..longest_ms));
    slot.signal(Signal::SIGSTOP);
    tokio::time::sleep(pause).await;
    slot.signal(Signal::SIGCONT);
    Ok(format!("{} for {} ms", slot.spec.name, pause.as_millis()))
}

pub(crate) async fn die_at(world: &World, fault: Fault, rng: &mut StdRng) -> Result<String> {
    let slot = victim(world, fault, rng).await?;
    let _turn = slot.turn.lock().await;
    // Not before the third batch: the first batches prepare their statements, so a commit would not yet be on its way.
    let batch = rng.random_range(3..=7);
    slot.restart_with(vec!["--inject".to_owned(), format!("{}:{batch}", fault.name())]).await;
    if slot.spec.program == "streamer" {
        // The second streamer has taken over by now, and would lead forever.
        world.streamers.iter().filter(|other| other.spec.name != slot.spec.name).for_each(|other| {
            other.signal(Signal::SIGKILL);
        });
    }
    let died = slot.dies_within(DEATH_WAIT).await;
    if !died {
        slot.signal(Signal::SIGKILL);
    }
    ensure!(died, "{} did not reach {} within {DEATH_WAIT:?}", slot.spec.name, fault.name());
    Ok(format!("{} in batch {batch}", slot.spec.name))
}

/// The points of a booking at which an api dies.
const BOOKING_POINTS: [&str; 5] = ["started", "ride-created", "charged", "charge-created", "finished"];

pub(crate) async fn die_booking(world: &World, rng: &mut StdRng) -> Result<String> {
    let slot = victim(world, Fault::DieBooking, rng).await?;
    let _turn = slot.turn.lock().await;
    let point = BOOKING_POINTS[rng.random_range(0..BOOKING_POINTS.len())];
    slot.restart_with(vec!["--die-at".to_owned(), point.to_owned()]).await;
    let died = slot.dies_within(DEATH_WAIT).await;
    if !died {
        slot.signal(Signal::SIGKILL);
    }
    ensure!(died, "no booking of {} reached {point} within {DEATH_WAIT:?}", slot.spec.name);
    Ok(format!("{} at {point}", slot.spec.name))
}

pub(crate) async fn die_charging(world: &World) -> Result<String> {
    let slot = &world.payments;
    let _turn = slot.turn.lock().await;
    let request = reqwest::Client::new().post(format!("{}/_faults", world.payments_url)).bearer_auth(PAYMENTS_KEY);
    let body = r#"{"kind":"die-after-charge","count":1}"#;
    let request = request.header(ORDER_HEADER, "1").header("content-type", "application/json").body(body);
    let request = request.timeout(DEATH_WAIT);
    request.send().await.context("planning a death")?.error_for_status().context("planning a death")?;
    ensure!(slot.dies_within(DEATH_WAIT).await, "no ride was charged within {DEATH_WAIT:?}");
    Ok(slot.spec.name.clone())
}

pub(crate) async fn twin(world: &World, fault: Fault, rng: &mut StdRng) -> Result<String> {
    let slot = victim(world, fault, rng).await?;
    let extra = if fault == Fault::TwinLeader { vec!["--lead-without-lock".to_owned()] } else { Vec::new() };
    let mut twin = slot.spawn(&extra)?;
    let life = Duration::from_millis(rng.random_range(1000..5000));
    tokio::time::sleep(life).await;
    if let Some(status) = twin.try_wait().context("watching the twin")? {
        world.history.violation(&format!("the twin of {} exited with {status}", slot.spec.name));
    }
    twin.kill().await.context("ending the twin")?;
    Ok(format!("{} for {} ms", slot.spec.name, life.as_millis()))
}
