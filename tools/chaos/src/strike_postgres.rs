//! Faults of Postgres and its clients: SIGKILL, cut connections, and slow transactions.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::traffic::commit_late;
use crate::world::World;

pub(crate) async fn kill(world: &World) -> Result<String> {
    world.postgres.lock().await.kill_and_restart().await?;
    Ok(String::new())
}

/// Terminates each connection of a process with a probability of one half.
pub(crate) async fn terminate(world: &World, rng: &mut StdRng) -> Result<String> {
    let client = world.connect().await?;
    let rows = client
        .query(
            "-- chaos::terminate
             SELECT pid, usename::text FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename <> current_user ORDER BY pid",
            &[],
        )
        .await
        .context("looking for connections")?;
    let mut hit = Vec::new();
    for row in rows.iter().filter(|_| rng.random_bool(0.5)) {
        let pid: i32 = row.get(0);
        client
            .execute(
                "-- chaos::terminate
                 SELECT pg_terminate_backend($1)",
                &[&pid],
            )
            .await
            .context("terminating a connection")?;
        hit.push(row.get::<_, String>(1));
    }
    Ok(hit.join(" "))
}

pub(crate) async fn long_transaction(world: &Arc<World>, rng: &mut StdRng) -> Result<String> {
    let open = Duration::from_millis(rng.random_range(5_000..20_000));
    // The transaction stays open while other faults strike.
    let (late, rng) = (Arc::clone(world), StdRng::seed_from_u64(rng.random()));
    world.background(async move { commit_late(&late, 2, open, rng).await });
    Ok(format!("{} ms", open.as_millis()))
}

pub(crate) async fn late_committers(world: &Arc<World>, rng: &mut StdRng) -> Result<String> {
    let count = rng.random_range(5..15);
    for _ in 0..count {
        let (ride_count, open) = (rng.random_range(1..5), Duration::from_millis(rng.random_range(10..3000)));
        let (late, rng) = (Arc::clone(world), StdRng::seed_from_u64(rng.random()));
        world.background(async move { commit_late(&late, ride_count, open, rng).await });
    }
    Ok(format!("{count} of them"))
}
