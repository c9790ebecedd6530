//! The contents of the containers' destinations and of their spool, as they are.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use serde::Deserialize;
use serde_json::Value;

use crate::container::BOARD;
use crate::world::World;

/// Notices per request.
const PAGE_LEN: usize = 1000;

/// An attempt of a unit: its key, and its number.
pub(crate) type Attempt = (String, i32);

/// All destinations.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stores {
    /// The documents, by the number of the unit.
    pub rows: HashMap<i64, Value>,
    /// The hash of each photo. Tombstones, which are empty, are left out.
    pub photos: HashMap<Attempt, u64>,
    /// The counts of passengers, by the id of the ride.
    pub board: HashMap<String, i64>,
    /// The attempts that the receiver was told to store, and not to undo.
    pub notices: Vec<Attempt>,
}

#[derive(Deserialize)]
struct Notice {
    unit: String,
    attempt: i32,
    state: String,
}

#[derive(Deserialize)]
struct Page {
    notices: Vec<Notice>,
    next: Option<usize>,
}

impl Stores {
    /// Reads all of them.
    ///
    /// # Errors
    /// One of them is away.
    pub async fn read(world: &World, client: &Client) -> Result<Self> {
        Ok(Self {
            rows: rows(client).await?,
            photos: photos(&world.containers.photos())?,
            board: board(world).await?,
            notices: notices(&world.containers.notices_url).await?,
        })
    }
}

async fn rows(client: &Client) -> Result<HashMap<i64, Value>> {
    let query = "-- chaos::unit_stores::rows\nSELECT uow, data::text FROM manifests";
    let rows = client.query(query, &[]).await.context("reading the manifests")?;
    rows.iter().map(|row| Ok((row.get(0), serde_json::from_str(row.get(1))?))).collect()
}

fn photos(folder: &Path) -> Result<HashMap<Attempt, u64>> {
    let mut photos = HashMap::new();
    for name in names_in(folder)? {
        let Some((key, attempt)) = name.rsplit_once('-').filter(|_| !name.starts_with('.')) else { continue };
        let path = folder.join(&name);
        let content = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        if !content.is_empty() {
            let attempt = attempt.parse().with_context(|| format!("the photo {name} is of no attempt"))?;
            photos.insert((key.to_owned(), attempt), hash_of(&content));
        }
    }
    Ok(photos)
}

/// The board in Redis.
pub(crate) async fn board(world: &World) -> Result<HashMap<String, i64>> {
    let mut zrange = redis::cmd("ZRANGE");
    zrange.arg(BOARD).arg(0).arg(-1).arg("WITHSCORES");
    let scores: Vec<(String, f64)> =
        zrange.query_async(&mut world.redis_connection().await?).await.context("reading the board")?;
    Ok(scores.into_iter().map(|(ride, count)| (ride, count as i64)).collect())
}

async fn notices(url: &str) -> Result<Vec<Attempt>> {
    let (client, mut stored, mut next) = (reqwest::Client::new(), Vec::new(), Some(0));
    while let Some(after) = next {
        let request = client.get(format!("{url}/notices?after={after}&limit={PAGE_LEN}"));
        let response = request.send().await.context("reading notices")?.error_for_status()?;
        let page: Page = response.json().await.context("reading notices")?;
        let is_stored = |notice: &Notice| notice.state == "stored";
        stored.extend(page.notices.into_iter().filter(is_stored).map(|notice| (notice.unit, notice.attempt)));
        next = page.next;
    }
    Ok(stored)
}

/// The names in a folder. A folder that was not made yet has none.
pub(crate) fn names_in(folder: &Path) -> Result<Vec<String>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// A photo without its bytes.
pub(crate) fn hash_of(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}
