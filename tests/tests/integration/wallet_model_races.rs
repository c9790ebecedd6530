//! Writers of the wallets' read model that race, while Postgres is put back again and again (W6).

use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;
use wallet::documents::Document;
use wallet::model::{Epoch, Model, Outcome};

use crate::wallet_model_fixture::{Fixture, History, WAIT, connect, model_on};

const WALLET_COUNT: usize = 3;
const VERSION_MAX: i64 = 200;

/// A random wait, often none.
async fn pause(random: &mut StdRng) {
    match random.random_range(0..4) {
        0 => {}
        1 | 2 => tokio::task::yield_now().await,
        _ => tokio::time::sleep(Duration::from_micros(random.random_range(0..500))).await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_reader_sees_an_older_version_after_a_newer_one() {
    let (fixture, epoch) = Fixture::begun().await;
    let histories: Arc<Vec<History>> = Arc::new((0..WALLET_COUNT).map(|_| History::new(VERSION_MAX)).collect());
    let mut writers = JoinSet::new();
    for seed in 0..6 {
        let (model, histories) = (model_on(&fixture.redis, WAIT).await, Arc::clone(&histories));
        let mut random = StdRng::seed_from_u64(seed);
        writers.spawn(async move {
            for newest in 1..=VERSION_MAX {
                let wallet = random.random_range(0..WALLET_COUNT);
                // What it has read may be old by now.
                let version = random.random_range(1..=newest);
                pause(&mut random).await;
                let written = model.put(Some(epoch), &[histories[wallet].document(version)]).await.unwrap();
                assert_eq!((written.outcome, written.deleted_count), (Outcome::Done, 0));
            }
        });
    }
    let mut readers = JoinSet::new();
    for wallet in 0..WALLET_COUNT {
        let (mut connection, histories) = (connect(&fixture.redis).await, Arc::clone(&histories));
        readers.spawn(async move {
            let mut newest = 0;
            loop {
                let key = format!("wallet.{}", histories[wallet].wallet);
                let text: Option<String> = redis::AsyncCommands::get(&mut connection, key).await.unwrap();
                let version = text.map_or(0, |text| {
                    text.split_once(r#""version_id":"#).unwrap().1.split_once(',').unwrap().0.parse::<i64>().unwrap()
                });
                assert!(version >= newest, "version {version} after {newest}");
                newest = version;
            }
        });
    }
    while let Some(written) = writers.join_next().await {
        written.unwrap();
    }
    readers.abort_all();
    while let Some(read) = readers.join_next().await {
        assert!(read.unwrap_err().is_cancelled());
    }
}

/// Postgres: the wallets' histories, and how far they have committed. It is put back by replacing all of it.
struct Timeline {
    epoch: Epoch,
    generation: u32,
    histories: Vec<History>,
    committed: Mutex<[i64; WALLET_COUNT]>,
}

impl Timeline {
    fn document(&self, wallet: usize) -> Option<Document> {
        let version = self.committed.lock().unwrap()[wallet];
        (version > 0).then(|| self.histories[wallet].document(version))
    }

    /// The same wallets, each put back by some events.
    fn put_back(&self, random: &mut StdRng) -> Self {
        let mut committed = *self.committed.lock().unwrap();
        committed.iter_mut().for_each(|version| *version = (*version - random.random_range(0..5)).max(0));
        let forks = self.histories.iter().zip(committed).map(|(history, version)| history.fork(version, VERSION_MAX));
        Self {
            epoch: Epoch::random(),
            generation: self.generation + 1,
            histories: forks.collect(),
            committed: Mutex::new(committed),
        }
    }
}

type Postgres = Arc<RwLock<Arc<Timeline>>>;

fn now(postgres: &Postgres) -> Arc<Timeline> {
    Arc::clone(&postgres.read().unwrap())
}

/// Commits, writes through, reads, writes back, and deletes, each step late.
async fn write(model: Model, postgres: Postgres, mut random: StdRng) {
    for _ in 0..150 {
        let timeline = now(&postgres);
        let epoch = Some(timeline.epoch);
        let wallet = random.random_range(0..WALLET_COUNT);
        let history = &timeline.histories[wallet];
        pause(&mut random).await;
        match random.random_range(0..8) {
            0..4 => {
                let count = random.random_range(1..25);
                let (from, to) = {
                    let mut committed = timeline.committed.lock().unwrap();
                    let from = committed[wallet];
                    committed[wallet] = (from + count).min(VERSION_MAX);
                    (from, committed[wallet])
                };
                pause(&mut random).await;
                if from < to {
                    model.put_changes(epoch, &[history.change(from, to)]).await.unwrap();
                }
            }
            4..7 => {
                let read = timeline.document(wallet);
                pause(&mut random).await;
                if let Some(read) = read {
                    model.put(epoch, &[read]).await.unwrap();
                }
            }
            _ => model.forget(&[history.wallet]).await.unwrap(),
        }
    }
}

/// Reads as the api does. A document is whole, of this timeline or of one that began since, and never ahead of what is committed.
async fn read(model: Model, postgres: Postgres, mut random: StdRng) {
    loop {
        let before = now(&postgres);
        let wallet = random.random_range(0..WALLET_COUNT);
        let read = model.document(before.histories[wallet].wallet).await.unwrap();
        let after = now(&postgres);
        if let Some(read) = read {
            let is_of = |timeline: &Timeline| {
                read.version <= timeline.committed.lock().unwrap()[wallet]
                    && read == timeline.histories[wallet].document(read.version)
            };
            // With more than one change of the timeline in between it may be one that is in neither hand.
            assert!(is_of(&before) || is_of(&after) || after.generation > before.generation + 1, "{read:?}");
        }
        pause(&mut random).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_writers_leave_whole_documents_of_the_current_timeline_and_at_rest_those_of_postgres() {
    let (fixture, epoch) = Fixture::begun().await;
    let histories = (0..WALLET_COUNT).map(|_| History::new(VERSION_MAX)).collect();
    let first = Timeline { epoch, generation: 0, histories, committed: Mutex::default() };
    let postgres: Postgres = Arc::new(RwLock::new(Arc::new(first)));
    let (mut writers, mut readers) = (JoinSet::new(), JoinSet::new());
    for seed in 0..6 {
        let random = || StdRng::seed_from_u64(seed);
        writers.spawn(write(model_on(&fixture.redis, WAIT).await, Arc::clone(&postgres), random()));
        readers.spawn(read(model_on(&fixture.redis, WAIT).await, Arc::clone(&postgres), random()));
    }
    let mut random = StdRng::seed_from_u64(7);
    while !writers.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        // Postgres is put back, and the projector has noticed it.
        let old = now(&postgres);
        let new = Arc::new(old.put_back(&mut random));
        let begun = tests::mark(new.epoch, 10, 0);
        assert!(fixture.model.begin(Some(old.epoch), &begun).await.unwrap());
        *postgres.write().unwrap() = new;
        while let Some(written) = writers.try_join_next() {
            written.unwrap();
        }
    }
    // Its scrubber writes every document.
    let timeline = now(&postgres);
    for wallet in 0..WALLET_COUNT {
        let Some(document) = timeline.document(wallet) else { continue };
        let written = fixture.model.put(Some(timeline.epoch), std::slice::from_ref(&document)).await.unwrap();
        assert_eq!(written.outcome, Outcome::Done);
        assert_eq!(fixture.model.document(document.wallet).await, Ok(Some(document)));
    }
    readers.abort_all();
    while let Some(read) = readers.join_next().await {
        assert!(read.unwrap_err().is_cancelled());
    }
}
