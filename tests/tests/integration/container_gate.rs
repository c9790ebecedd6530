//! A gate between a container and its Redis: it holds the commands of connections that exist, and carries those of new ones.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tests::{scratch_folder, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// The gate, on a socket of its own. It ends with the test.
pub struct Gate {
    folder: PathBuf,
    /// The number of the first connection that is not held.
    first_free: watch::Sender<u64>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    connection_count: AtomicU64,
    /// Pieces that have arrived and wait.
    held_count: AtomicU64,
    /// Pieces that have waited and were carried on.
    late_count: AtomicU64,
}

impl Gate {
    /// A gate to the Redis of this URL.
    pub async fn start(redis_url: &str) -> Self {
        let redis = PathBuf::from(redis_url.strip_prefix("redis+unix://").expect("a socket").replace("%2F", "/"));
        let folder = scratch_folder();
        let listener = UnixListener::bind(folder.join("gate")).unwrap();
        let gate = Self { folder, first_free: watch::Sender::new(0), shared: Arc::default() };
        let (first_free, shared) = (gate.first_free.subscribe(), Arc::clone(&gate.shared));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = shared.connection_count.fetch_add(1, Ordering::Relaxed);
                let server = UnixStream::connect(&redis).await.unwrap();
                tokio::spawn(carry(client, server, number, first_free.clone(), Arc::clone(&shared)));
            }
        });
        gate
    }

    /// Its URL, for a container.
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.folder.join("gate").display())
    }

    /// Holds what existing connections send from now on.
    pub fn hold(&self) {
        self.first_free.send_replace(self.shared.connection_count.load(Ordering::Relaxed));
    }

    /// Waits until a command is held.
    pub async fn holds_something(&self) {
        wait_until("a command is held", async || self.shared.held_count.load(Ordering::Relaxed) > 0).await;
    }

    /// Carries the commands that were held, and waits until Redis has replied.
    pub async fn release(&self) {
        self.first_free.send_replace(0);
        let is_late = async || {
            let (held, late) = (&self.shared.held_count, &self.shared.late_count);
            late.load(Ordering::Relaxed) == held.load(Ordering::Relaxed)
        };
        wait_until("Redis has replied", is_late).await;
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Carries one connection until either side closes it. Redis still gets the commands of a client that is gone.
async fn carry(
    client: UnixStream,
    server: UnixStream,
    number: u64,
    mut first_free: watch::Receiver<u64>,
    shared: Arc<Shared>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let replied = Arc::new(watch::Sender::new(0_u64));
    let back = tokio::spawn({
        let replied = Arc::clone(&replied);
        async move {
            let mut bytes = vec![0; 10_000];
            while let Ok(len @ 1..) = from_server.read(&mut bytes).await {
                replied.send_modify(|count| *count += 1);
                let _ = to_client.write_all(&bytes[..len]).await;
            }
        }
    });
    let mut bytes = vec![0; 10_000];
    while let Ok(len @ 1..) = from_client.read(&mut bytes).await {
        let is_held = number < *first_free.borrow();
        if is_held {
            shared.held_count.fetch_add(1, Ordering::Relaxed);
            let _ = first_free.wait_for(|first| number >= *first).await;
        }
        let before = *replied.borrow();
        if to_server.write_all(&bytes[..len]).await.is_err() {
            break;
        }
        if is_held {
            let _ = replied.subscribe().wait_for(|count| *count > before).await;
            shared.late_count.fetch_add(1, Ordering::Relaxed);
        }
    }
    back.abort();
}
