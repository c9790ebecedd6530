//! The least that a container must do for a request: write a file and sync it, and commit a row. No destination, no verdict.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::spawn_blocking;

use super::CONNECTIONS;
use crate::bench::Bench;

/// The names of the document, whose length is that of the load's.
const NAME_COUNT: usize = 100;

/// Units per second, as many at one time as the container gets. The first half of the time is not counted.
///
/// # Errors
/// Postgres is away, or the folder cannot be written.
pub(super) async fn units_per_s(bench: &Bench, round: u32) -> Result<f64> {
    let folder = bench.folder.join(format!("limit-{round}"));
    std::fs::create_dir_all(&folder).context("making a folder")?;
    let names: Vec<String> = (0..NAME_COUNT).map(|number| format!(r#"{{"name":"{}"}}"#, scattered(number))).collect();
    let document: Arc<str> = format!(r#"{{"ride_id":7,"passengers":[{}]}}"#, names.join(",")).into();
    let (next, seconds) = (Cell::new(0), Duration::from_secs(bench.config.seconds));
    let (counted_at, deadline) = (Instant::now() + seconds, Instant::now() + 2 * seconds);
    let clients = (0..CONNECTIONS).map(|_| write(bench, &folder, &document, &next, deadline));
    let clients = futures_util::future::try_join_all(clients);
    let count = async {
        tokio::time::sleep_until(counted_at.into()).await;
        next.get()
    };
    let (written, uncounted) = tokio::join!(clients, count);
    written?;
    Ok(f64::from(next.get() - uncounted) / counted_at.elapsed().as_secs_f64())
}

async fn write(bench: &Bench, folder: &Path, document: &Arc<str>, next: &Cell<u32>, deadline: Instant) -> Result<()> {
    let client = bench.connect().await?;
    let insert = "-- benchmarks::limit\nINSERT INTO manifests (uow, subject, data) VALUES ($1, '7', $2::text::jsonb)";
    let insert = client.prepare(insert).await.context("preparing the insertion")?;
    while Instant::now() < deadline {
        next.set(next.get() + 1);
        let number = next.get();
        let (path, content) = (folder.join(number.to_string()), Arc::clone(document));
        spawn_blocking(move || write_file(&path, &content)).await?.context("writing a file")?;
        client.execute(&insert, &[&i64::from(number), &&**document]).await.context("writing a row")?;
    }
    Ok(())
}

fn write_file(path: &PathBuf, content: &str) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

/// 88 hexadecimal digits that hardly compress.
fn scattered(number: usize) -> String {
    let mut state = number as u64 + 1;
    let mut next = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        format!("{:08x}", state >> 32)
    };
    (0..11).map(|_| next()).collect()
}
