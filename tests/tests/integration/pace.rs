//! The pace over a slow network: a round trip is made for many records, and not for each of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use common::shutdown::CancellationToken;
use consumer::{Consumer, DistanceFold, State};
use pglog::Partition;
use tests::{World, wait_until};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio_postgres::Config;
use tokio_postgres::config::Host;

use crate::reaper::reap;

/// More than the reaper takes at once.
const BATCH_COUNT: i64 = 1_100;

/// A network on which everything arrives a millisecond late. It counts how often the process sends something.
struct SlowNetwork {
    /// The URL of Postgres behind it.
    url: String,
    trip_count: Arc<AtomicUsize>,
}

impl SlowNetwork {
    /// Between the process `name` and Postgres.
    async fn of(world: &World, name: &str) -> Self {
        let postgres: Config = world.database_url_of(name).parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let Host::Unix(folder) = &postgres.get_hosts()[0] else { panic!("bin/test uses unix sockets") };
        let socket = folder.join(format!(".s.PGSQL.{}", postgres.get_ports().first().copied().unwrap_or(5432)));
        let trip_count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&trip_count);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                client.set_nodelay(true).unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = UnixStream::connect(&socket).await.unwrap().into_split();
                tokio::spawn(carry(from_client, to_server, Arc::clone(&counted)));
                tokio::spawn(carry(from_server, to_client, Arc::default()));
            }
        });
        let (user, database) = (postgres.get_user().unwrap(), postgres.get_dbname().unwrap());
        Self { url: format!("postgres://{user}@127.0.0.1:{port}/{database}"), trip_count }
    }
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, count: Arc<AtomicUsize>) {
    let mut bytes = vec![0; 100_000];
    while let Ok(len @ 1..) = from.read(&mut bytes).await {
        count.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(1)).await;
        if to.write_all(&bytes[..len]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_look_over_a_thousand_small_batches_takes_few_round_trips() {
    let world = World::new().await;
    let mut consumer = world.consumer("c0");
    for _ in 0..BATCH_COUNT {
        world.write_rides(1).await;
        pglog::assign(world.client(), Partition::FIRST, rand::random()).await.unwrap();
    }
    world.drain_consumer(&mut consumer).await;
    let network = SlowNetwork::of(&world, "reaper").await;
    let args = ["reaper", "--keep", "0s", "--database-url", &network.url].map(str::to_owned);
    let others = world.flags("reaper").split_off(2);
    let config = reaper::Config::parse_from(args.into_iter().chain(others));
    let cleaned = reaper::run_once(&config, &CancellationToken::new()).await.unwrap();
    assert_eq!((cleaned.batch_count, cleaned.record_count), (BATCH_COUNT as u64, BATCH_COUNT as u64));
    let trip_count = network.trip_count.load(Ordering::Relaxed);
    assert!(trip_count < 300, "{trip_count} round trips");
    world.assert_converged(&["c0", "baseline"]).await;
}

#[tokio::test]
async fn a_page_of_dead_letters_takes_few_round_trips() {
    let world = World::new().await;
    let stage = "INSERT INTO staged_log_records (object, action, data)
                 SELECT 'ride', 'create', '{\"id\":1,\"distance_mm\":-5}' FROM generate_series(1, 1000)";
    world.client().batch_execute(stage).await.unwrap();
    pglog::assign(world.client(), Partition::FIRST, 1).await.unwrap().unwrap();
    let network = SlowNetwork::of(&world, "consumer").await;
    let mut config = world.consumer_config("c0");
    config.postgres.database_url = network.url.parse().unwrap();
    let mut consumer = Consumer::new(&config, State::<DistanceFold>::default(), CancellationToken::new());
    world.drain_consumer(&mut consumer).await;
    assert_eq!(world.number("SELECT count(*) FROM dead_letters").await, 1000);
    let trip_count = network.trip_count.load(Ordering::Relaxed);
    assert!(trip_count < 100, "{trip_count} round trips");
}

#[tokio::test]
async fn the_stream_is_trimmed_although_reaping_waits() {
    let world = World::new().await;
    world.carry_rides(3_000, &mut world.streamer(), &mut world.consumer("c0")).await;
    let mut busy = world.connect().await;
    let busy = busy.transaction().await.unwrap();
    // A consumer that registers holds off the reaper.
    pglog::hold_reaping(&busy).await.unwrap();
    let began_at = Instant::now();
    let looking = reap(&world, &["--keep", "0s", "--stream-len-max", "500"]);
    let letting_go = async {
        wait_until("the stream is trimmed", async || world.stream_len().await < 700).await;
        // Before that the reaper gives up waiting, and tries again.
        assert!(began_at.elapsed() < Duration::from_secs(9), "{:?}", began_at.elapsed());
        busy.rollback().await.unwrap();
    };
    let (cleaned, ()) = tokio::join!(looking, letting_go);
    assert_eq!(cleaned.record_count, 3_000);
}
