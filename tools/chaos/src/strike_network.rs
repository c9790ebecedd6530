//! Faults of the network between a process and a server.

use std::time::Duration;

use anyhow::Result;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::Fault;
use crate::fleet::Slot;
use crate::proxy::Trouble;
use crate::world::World;

/// Longer than any process waits for an answer.
const VERY_LONG: Duration = Duration::from_secs(55);

pub(crate) async fn strike(world: &World, fault: Fault, rng: &mut StdRng) -> Result<String> {
    use Fault as F;
    let at_commit = matches!(fault, F::NetCutBeforeCommit | F::NetCutAfterCommit);
    // Many of the commits that are cut are an api's: a client without a key relies on the api to look them up. An api that cannot
    // reach Redis leaves old documents there, which the other api reads. A container's are verdicts, and its Redis has the board.
    let program = match rng.random_range(0.0..1.0) {
        share if share < 0.3 => Some("api"),
        share if share < 0.5 => Some("container"),
        _ if at_commit => Some("consumer"),
        _ => None,
    };
    let is_victim = |slot: &Slot| match program {
        // The receiver of notices reaches neither server.
        Some(program) => slot.spec.program == program && slot.spec.name != "notices",
        None => !matches!(slot.spec.program, "api" | "container"),
    };
    let victims: Vec<_> = world.slots().filter(|slot| is_victim(slot)).collect();
    let slot = victims[rng.random_range(0..victims.len())];
    // The nodes of a cluster are reached without a proxy, because they name each other's true addresses.
    let has_proxy =
        world.cluster.is_none() || matches!(slot.spec.program, "api" | "container") || slot.spec.name == "wallets";
    let to_postgres = at_commit || rng.random_bool(0.5) || !has_proxy;
    let proxy = if to_postgres { &slot.to_postgres } else { &slot.to_redis };
    let mut wait = Duration::from_millis(rng.random_range(300..4000));
    let trouble = match fault {
        F::NetCut => Trouble::Cut,
        F::NetAway => Trouble::Away,
        F::NetSlow => Trouble::Slow(Duration::from_millis(rng.random_range(5..300))),
        F::NetSilent => Trouble::Silent,
        F::NetHalfOpen => Trouble::HalfOpen,
        F::NetCutAfterBytes => Trouble::CutAfter(rng.random_range(0..20_000)),
        F::NetCutBeforeCommit => Trouble::CutBeforeCommit,
        _ => Trouble::CutAfterCommit,
    };
    if matches!(trouble, Trouble::Silent | Trouble::HalfOpen) && rng.random_bool(0.1) {
        wait = VERY_LONG;
    }
    let _turn = slot.turn.lock().await;
    proxy.set(trouble);
    tokio::time::sleep(wait).await;
    proxy.set(Trouble::None);
    let server = if to_postgres { "postgres" } else { "redis" };
    Ok(format!("{} to {server} for {} ms {trouble:?}", slot.spec.name, wait.as_millis()))
}
