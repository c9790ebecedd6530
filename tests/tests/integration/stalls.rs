//! Postgres stalls: the api responds in time, accepts no more than it can hold, and recovers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::Limits;
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::{PrivatePostgres, PrivateRedis, Process, World, wait_until};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio_postgres::Config;
use tokio_postgres::config::Host;

use crate::api::Api;

/// A proxy to Postgres that can go silent: it accepts all bytes and forwards none, and no connection is closed.
struct SilentProxy {
    port: u16,
    /// The switch of new connections. Connections from before a [`SilentProxy::mend`] keep their old switch.
    dead: Mutex<Arc<AtomicBool>>,
    open_count: AtomicUsize,
}

impl SilentProxy {
    async fn to(postgres: &Config) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let proxy = Arc::new(Self { port, dead: Mutex::default(), open_count: AtomicUsize::new(0) });
        let (accepting, postgres) = (Arc::clone(&proxy), postgres.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let dead = Arc::clone(&accepting.dead.lock().unwrap());
                tokio::spawn(Arc::clone(&accepting).carry(client, postgres.clone(), dead));
            }
        });
        proxy
    }

    /// The configuration that connects through this proxy.
    fn config(&self, postgres: &Config) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user(postgres.get_user().unwrap());
        config.dbname(postgres.get_dbname().unwrap());
        if let Some(password) = postgres.get_password() {
            config.password(password);
        }
        config
    }

    /// Makes all connections silent, open and new.
    fn cut(&self) {
        self.dead.lock().unwrap().store(true, Ordering::SeqCst);
    }

    /// Forwards new connections again. Connections that are already open stay silent.
    fn mend(&self) {
        *self.dead.lock().unwrap() = Arc::default();
    }

    async fn carry(self: Arc<Self>, client: TcpStream, postgres: Config, dead: Arc<AtomicBool>) {
        self.open_count.fetch_add(1, Ordering::SeqCst);
        let port = postgres.get_ports().first().copied().unwrap_or(5432);
        let (from_client, to_client) = client.into_split();
        match &postgres.get_hosts()[0] {
            Host::Unix(folder) => {
                let server = UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).await.unwrap();
                let (from_server, to_server) = server.into_split();
                let back = tokio::spawn(carry_one_way(from_server, to_client, Arc::clone(&dead)));
                carry_one_way(from_client, to_server, dead).await;
                back.abort();
            }
            Host::Tcp(host) => {
                let (from_server, to_server) = TcpStream::connect((host.as_str(), port)).await.unwrap().into_split();
                let back = tokio::spawn(carry_one_way(from_server, to_client, Arc::clone(&dead)));
                carry_one_way(from_client, to_server, dead).await;
                back.abort();
            }
        }
        self.open_count.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn carry_one_way(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, dead: Arc<AtomicBool>) {
    let mut bytes = vec![0; 10_000];
    while let Ok(len @ 1..) = from.read(&mut bytes).await {
        if !dead.load(Ordering::SeqCst) && to.write_all(&bytes[..len]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn connections_on_which_postgres_never_answers_are_given_up_and_not_used_again() {
    let world = World::new().await;
    let postgres: Config = world.database_url().parse().unwrap();
    let proxy = SilentProxy::to(&postgres).await;
    let limits = Limits { answer_wait: Duration::from_secs(1), ..Limits::default() };
    let api = Api::start_within(&proxy.config(&postgres), limits).await;
    // The pool holds several connections, so a request could later get a dead connection.
    let reads = (0..50).map(|_| api.get("/rides"));
    assert!(futures_util::future::join_all(reads).await.iter().all(|(status, _)| *status == 200));
    assert_eq!(api.post_form("distance=1").await.0, 201);
    assert!(proxy.open_count.load(Ordering::SeqCst) >= 3);

    proxy.cut();
    let (write, reads) = tokio::join!(
        api.post_form("distance=2"),
        futures_util::future::join_all(["/rides", "/rides/1", "/totals", "/healthz"].map(|path| api.get(path)))
    );
    for (status, answer) in reads.into_iter().chain([write]) {
        assert_eq!((status, &answer["code"]), (503, &json!("unavailable")), "{answer}");
    }
    // A new connection may not hang either: every open connection has been given up by now.
    assert_eq!(api.post_form("distance=3").await.0, 503);
    proxy.mend();
    assert_eq!(api.post_form("distance=4").await.0, 201, "the first request after the stall is served");
    for path in ["/rides", "/rides/1", "/totals", "/healthz"] {
        assert_eq!(api.get(path).await.0, 200, "{path}");
    }
    let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'api'";
    let open = async || proxy.open_count.load(Ordering::SeqCst) as i64 == world.number(query).await;
    wait_until("no dead connection is left open", open).await;
    assert_eq!(world.sql_totals().await, (2, 5_000));
}

#[tokio::test]
async fn many_readers_leave_a_connection_to_the_writer() {
    let world = World::new().await;
    let api = Api::start_within(&world.database_url().parse().unwrap(), Limits::default()).await;
    // Every reader waits for this lock. Writes of rides do not need it.
    let mut locker = world.connect().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE history IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let url = api.url("/history");
    let mut readers = JoinSet::new();
    for _ in 0..30 {
        readers.spawn(reqwest::get(url.clone()));
    }
    wait_until("readers wait", async || world.waiting_count().await >= 6).await;
    for _ in 0..20 {
        assert_eq!(api.post_form("distance=1").await.0, 201);
    }
    assert_eq!(world.waiting_count().await, 6, "readers hold only their share of the connections");
    lock.commit().await.unwrap();
    while let Some(response) = readers.join_next().await {
        let response = response.unwrap().unwrap();
        let status = response.status().as_u16();
        let answer: Value = response.json().await.unwrap();
        assert!(status == 200 || (status, &answer["code"]) == (503, &json!("overloaded")), "{status} {answer}");
    }
}

/// The response to a ride.
#[derive(Debug)]
enum Said {
    Ride(i64),
    Overloaded,
    Unavailable,
}

async fn post(client: reqwest::Client, url: String) -> Said {
    let form = ("content-type", "application/x-www-form-urlencoded");
    let response = client.post(url).header(form.0, form.1).body("distance=1").send().await.unwrap();
    let (status, retry_after) = (response.status().as_u16(), response.headers().get("retry-after").cloned());
    let answer: Value = response.json().await.unwrap();
    match (status, answer["code"].as_str()) {
        (201, None) => Said::Ride(answer["ride"]["id"].as_i64().unwrap()),
        (503, Some("overloaded")) if retry_after.is_some() => Said::Overloaded,
        (503, Some("unavailable")) if retry_after.is_some() => Said::Unavailable,
        _ => panic!("{status} {retry_after:?} {answer}"),
    }
}

#[tokio::test]
async fn while_postgres_stalls_the_api_sheds_what_it_cannot_hold_and_then_recovers() {
    let world = World::new().await;
    let mut process = Process::start(&world, "api", &["--api-port", "0"]);
    process.wait_for("api started").await;
    let output = process.output();
    let address = output.split("address=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let (client, url) = (reqwest::Client::new(), format!("http://{address}/rides"));
    let mut locker = world.connect().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE rides IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut answers = JoinSet::new();
    for _ in 0..100 {
        answers.spawn(post(client.clone(), url.clone()));
    }
    wait_until("the writer waits", async || world.waiting_count().await == 1).await;

    // Clients that leave fill the queue until further requests are refused at once.
    let mut said = Vec::new();
    while said.is_empty() {
        send_and_leave(&address, 1).await;
        answers.spawn(post(client.clone(), url.clone()));
        said.extend(answers.try_join_next().map(Result::unwrap));
    }
    assert!(matches!(said[0], Said::Overloaded), "{said:?}");
    let full_kib = resident_kib(process.pid());
    send_and_leave(&address, 50).await;
    assert!(matches!(post(client.clone(), url.clone()).await, Said::Overloaded));
    let grown_kib = resident_kib(process.pid()) - full_kib;
    println!("{full_kib} KiB with a full queue, {grown_kib} more after 5,000 further requests");
    assert!(full_kib < 200 * 1024 && grown_kib < 20 * 1024, "{full_kib} KiB, then {grown_kib} KiB more");

    lock.commit().await.unwrap();
    wait_until("rides are taken again", async || {
        said.push(post(client.clone(), url.clone()).await);
        matches!(said.last(), Some(Said::Ride(_)))
    })
    .await;
    said.extend(answers.join_all().await);
    let ids: Vec<i64> =
        said.iter().filter_map(|said| if let Said::Ride(id) = said { Some(*id) } else { None }).collect();
    assert!(ids.len() >= 100, "every client that waited was served: {said:?}");
    let there = "SELECT count(*) FROM rides WHERE distance_mm = 1000 AND id = ANY($1)";
    let there_count: i64 = world.client().query_one(there, &[&ids]).await.unwrap().get(0);
    assert_eq!(there_count, ids.len() as i64, "every ride that was confirmed is there");
    let left = "SELECT count(*) FROM rides WHERE distance_mm = 7000";
    assert_eq!(world.number(left).await, 0, "no ride is written whose client has left");
    process.stop().await;
}

/// Sends rides, each on a connection that the client closes: `hundred_count` times a hundred of them together. The response to
/// another request before the ride shows that the api reads the connection: otherwise it might see the end of the connection
/// first, and drop the ride before it waits in the queue.
async fn send_and_leave(address: &str, hundred_count: usize) {
    let requests = "GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n\
                    POST /rides HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\n\
                    content-length: 10\r\n\r\ndistance=7";
    let send = async || {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(requests.as_bytes()).await.unwrap();
        let response_len = socket.read(&mut [0; 1000]).await.unwrap();
        assert!(response_len > 0, "the first request has a response");
    };
    for _ in 0..hundred_count {
        futures_util::future::join_all((0..100).map(|_| send())).await;
    }
}

fn resident_kib(pid: Pid) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The api sends the hint on the connection that writes. NOTIFY takes a lock during its commit. Here another session holds that
/// lock, because its commit waits for a standby that does not exist.
#[tokio::test]
async fn a_notify_that_is_stuck_in_its_commit_holds_up_no_rides() {
    let settings = ["synchronous_commit=local", "synchronous_standby_names=nobody"];
    let (postgres, redis) = (PrivatePostgres::start_with(&settings).await, PrivateRedis::start(&[]).await);
    let mut world = World::on(&postgres.url(), &redis.url()).await;
    // DROP DATABASE would wait for the stuck session.
    world.forget_database();
    let limits = Limits { answer_wait: Duration::from_secs(3), ..Limits::default() };
    let api = Api::start_within(&world.database_url().parse().unwrap(), limits).await;
    let stuck = postgres.connect("postgres").await;
    tokio::spawn(async move {
        let write_and_notify = "CREATE TABLE something (); NOTIFY elsewhere";
        stuck.batch_execute(&format!("SET synchronous_commit = on; BEGIN; {write_and_notify}; COMMIT")).await
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    wait_until("a commit is stuck", async || world.number(waiting).await == 1).await;
    pglog::hint(world.client()).await.expect_err("the lock is taken");
    for _ in 0..10 {
        assert_eq!(api.post_form("distance=5").await.0, 201);
    }
    assert_eq!(world.number(waiting).await, 1, "the commit is still stuck");
}
