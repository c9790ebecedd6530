//! One world per test: a database cloned from a template, and a stream with its own name.

use std::time::{Duration, Instant};

use clap::Parser;
use common::shutdown::CancellationToken;
use consumer::{Consumer, DistanceFold, Progress, State};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{PartitionCount, Session};
use redis::aio::MultiplexedConnection;
use stream::wire::Wire;
use streamer::{Fault, Step, Streamer};
use tokio_postgres::Config;

use crate::connection::connect;
use crate::servers::{PrivatePostgres, PrivateRedis};
use crate::template::{create_template, with_database};

/// The names of the processes that have a role of their own, as `ops/roles.sql` lists them: `rocket_api` is the role of the
/// api.
pub fn roles() -> Vec<&'static str> {
    let (_, list) = launcher::ROLES.split_once("ARRAY[").expect("roles.sql lists the roles in an array");
    let (list, _) = list.split_once(']').expect("the array has an end");
    list.split('\'').filter_map(|name| name.strip_prefix("rocket_")).collect()
}

/// A database and a stream.
pub struct World {
    database_url: String,
    redis_url: String,
    stream_name: String,
    client: Client,
    /// The connection for `DROP DATABASE`, and the database. `None` if the server is removed with the test.
    maintenance: Option<(Config, String)>,
}

impl World {
    /// A world on the servers that `bin/test` started.
    pub async fn new() -> Self {
        Self::on(&from_environment("DATABASE_URL"), &from_environment("REDIS_URL")).await
    }

    /// A world on the shared Postgres and a private Redis, which the test may wipe and kill.
    pub async fn with_redis(redis_url: &str) -> Self {
        Self::on(&from_environment("DATABASE_URL"), redis_url).await
    }

    /// A world with a log of so many partitions, on the servers that `bin/test` started.
    pub async fn cut(partition_count: i32) -> Self {
        Self::cut_on(&from_environment("DATABASE_URL"), &from_environment("REDIS_URL"), partition_count).await
    }

    /// A world with a log of so many partitions, on private servers.
    pub async fn cut_on(maintenance_url: &str, redis_url: &str, partition_count: i32) -> Self {
        Self::make(maintenance_url, redis_url, Some(PartitionCount::new(partition_count).unwrap())).await
    }

    /// A world on private servers.
    pub async fn on(maintenance_url: &str, redis_url: &str) -> Self {
        Self::make(maintenance_url, redis_url, None).await
    }

    async fn make(maintenance_url: &str, redis_url: &str, partitions: Option<PartitionCount>) -> Self {
        let maintenance: Config = maintenance_url.parse().unwrap();
        let client = connect(&maintenance).await;
        let template = create_template(&client, maintenance_url, partitions).await;
        let database = format!("t_{:016x}", rand::random::<u64>());
        client.batch_execute(&format!("CREATE DATABASE {database} TEMPLATE {template}")).await.unwrap();
        let database_url = with_database(maintenance_url, &database);
        let mut world = Self::at(&database_url, redis_url, &database).await;
        // A clone has the id of the template.
        let renew = "UPDATE log_identity SET log_id = left(md5(random()::text), 12) WHERE log_id IS NOT NULL";
        world.client.batch_execute(renew).await.unwrap();
        pglog::prepare_session(&world.client).await.unwrap();
        world.maintenance = Some((maintenance, database));
        world
    }

    /// A world in an existing database, whatever it contains. The database is not dropped.
    pub async fn at(database_url: &str, redis_url: &str, stream_name: &str) -> Self {
        Self {
            database_url: database_url.to_owned(),
            redis_url: redis_url.to_owned(),
            stream_name: stream_name.to_owned(),
            client: connect(&database_url.parse().unwrap()).await,
            maintenance: None,
        }
    }

    /// A world on a private primary, with a standby of it. Both are in its URL, the primary first.
    pub async fn with_standby(primary: &PrivatePostgres, redis: &PrivateRedis) -> (Self, PrivatePostgres) {
        let mut made = Self::on(&primary.url(), &redis.url()).await;
        made.forget_database();
        let standby = primary.start_standby().await;
        let database = made.database_name();
        (Self::at(&primary.url_with(&standby, database), &redis.url(), database).await, standby)
    }

    /// Keeps [`Drop`] from dropping the database, for tests that stop their server before they end.
    pub fn forget_database(&mut self) {
        self.maintenance = None;
    }

    /// `DATABASE_URL` of the database's owner.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// The name of the database.
    pub fn database_name(&self) -> &str {
        self.database_url.rsplit_once('/').expect("a URL ends with /database").1
    }

    /// `DATABASE_URL` for the process `name`. A process connects under its own role, so every test also proves that the
    /// grants of `roles.sql` suffice. A program without a role connects as the owner.
    pub fn database_url_of(&self, name: &str) -> String {
        if !roles().contains(&name) {
            return self.database_url.clone();
        }
        let (_, server) = self.database_url.split_once('@').expect("a URL of bin/test names its user");
        format!("postgres://rocket_{name}@{server}")
    }

    /// `REDIS_URL` for processes.
    pub fn redis_url(&self) -> &str {
        &self.redis_url
    }

    /// `STREAM_NAME` for processes, which is also the stream's key.
    pub fn stream_name(&self) -> &str {
        &self.stream_name
    }

    /// The test's own connection to the database.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Opens another connection.
    pub async fn connect(&self) -> Client {
        connect(&self.database_url.parse().unwrap()).await
    }

    /// Opens another connection under the role of the process `name`.
    pub async fn connect_as(&self, name: &str) -> Client {
        connect(&self.database_url_of(name).parse().unwrap()).await
    }

    /// The same world with a new connection, after its Postgres was restarted.
    pub async fn reconnected(mut self) -> Self {
        self.client = self.connect().await;
        self
    }

    /// A connection to Redis like those of streamer and consumers.
    pub async fn wire(&self) -> Wire {
        let client = stream::redis::client(&self.redis_url).unwrap();
        Wire::connect(&client, Duration::ZERO).await.unwrap()
    }

    /// A connection to Redis.
    pub async fn redis(&self) -> MultiplexedConnection {
        stream::redis::connect(&stream::redis::client(&self.redis_url).unwrap()).await.unwrap()
    }

    /// The number of entries in the stream.
    pub async fn stream_len(&self) -> i64 {
        redis::cmd("XLEN").arg(&self.stream_name).query_async(&mut self.redis().await).await.unwrap()
    }

    /// The flags of the process `name` in this world.
    pub fn flags(&self, name: &str) -> Vec<String> {
        let pairs = [
            ("--database-url", self.database_url_of(name)),
            ("--redis-url", self.redis_url.clone()),
            ("--stream-name", self.stream_name.clone()),
        ];
        pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    /// A streamer of this world, which the test drives step by step.
    pub fn streamer(&self) -> Streamer {
        let args = ["streamer".to_owned()].into_iter().chain(self.flags("streamer"));
        Streamer::new(&streamer::Config::parse_from(args))
    }

    /// The configuration of a consumer of this world.
    pub fn consumer_config(&self, name: &str) -> consumer::Config {
        let args = ["consumer".to_owned(), name.to_owned()].into_iter().chain(self.flags("consumer"));
        consumer::Config::parse_from(args)
    }

    /// A consumer of this world, which the test drives step by step.
    pub fn consumer(&self, name: &str) -> Consumer<State<DistanceFold>> {
        Consumer::new(&self.consumer_config(name), State::default(), CancellationToken::new())
    }

    /// Stages the record of a ride without a row in `rides`, as the original's tests did.
    pub async fn stage(&self, ride_id: i64, distance_mm: i64) {
        self.stage_data(&format!(r#"{{"id":{ride_id},"distance_mm":{distance_mm}}}"#)).await;
    }

    /// Stages a record of a created ride with the payload `data`.
    pub async fn stage_data(&self, data: &str) {
        let record = pglog::NewRecord { key: "", object: "ride", action: "create", data, traceparent: None };
        pglog::stage(&self.client, record).await.unwrap();
    }

    /// Writes `count` rides of random length with their records, in one transaction.
    pub async fn write_rides(&self, count: i64) {
        write_rides(&self.client, count).await;
    }

    /// Publishes until nothing is staged. Returns the numbers of entries added and refused.
    pub async fn drain_streamer(&self, streamer: &mut Streamer) -> (usize, usize) {
        let (mut added_count, mut refused_count) = (0, 0);
        loop {
            match self.step(streamer).await.unwrap() {
                Step::Published(published) => {
                    added_count += published.added_count;
                    refused_count += published.refused_count;
                }
                Step::Searching => {}
                Step::Idle => return (added_count, refused_count),
                Step::StandingBy => unreachable!(),
            }
        }
    }

    /// One step of a streamer that leads. The server may need a moment to notice that an earlier streamer of the test is gone.
    ///
    /// # Errors
    /// As [`Streamer::run_once`].
    pub async fn step(&self, streamer: &mut Streamer) -> anyhow::Result<Step> {
        let began_at = Instant::now();
        loop {
            match streamer.run_once(Fault::None).await {
                Ok(Step::StandingBy) => {
                    assert!(began_at.elapsed() < Duration::from_secs(5), "another streamer leads in this test's world");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                step => return step,
            }
        }
    }

    /// Folds until nothing is left. Returns the sum of all progress.
    pub async fn drain_consumer(&self, consumer: &mut Consumer<State<DistanceFold>>) -> Progress {
        let mut sum = Progress::default();
        loop {
            let progress = consumer.run_once(consumer::Fault::None, None).await.unwrap();
            if progress == Progress::default() {
                return sum;
            }
            sum.applied_count += progress.applied_count;
            sum.passed_count += progress.passed_count;
            sum.dead_letter_count += progress.dead_letter_count;
            sum.healed_count += progress.healed_count;
            sum.duplicate_count += progress.duplicate_count;
            sum.rejected_count += progress.rejected_count;
            if progress.blocked {
                return sum;
            }
        }
    }

    /// Writes `count` rides, publishes everything that is staged, and folds it. Returns the sum of all progress.
    pub async fn carry_rides(
        &self,
        count: i64,
        streamer: &mut Streamer,
        consumer: &mut Consumer<State<DistanceFold>>,
    ) -> Progress {
        self.write_rides(count).await;
        self.drain_streamer(streamer).await;
        self.drain_consumer(consumer).await
    }

    /// The committed checkpoint and state of a consumer.
    pub async fn committed(&self, name: &str) -> (i64, DistanceFold) {
        let row = self
            .client
            .query_one(
                "SELECT last_offset, total_distance_mm, ride_count, digest
                 FROM checkpoints JOIN consumer_states USING (name, partition) WHERE name = $1 AND partition = 0",
                &[&name],
            )
            .await
            .unwrap();
        (row.get(0), DistanceFold { total_distance_mm: row.get(1), ride_count: row.get(2), digest: row.get(3) })
    }

    /// Count and sum of the rides in SQL.
    pub async fn sql_totals(&self) -> (i64, i64) {
        let row = self
            .client
            .query_one("SELECT count(*), COALESCE(sum(distance_mm), 0)::bigint FROM rides", &[])
            .await
            .unwrap();
        (row.get(0), row.get(1))
    }

    /// The head of the log, once every record that is staged has an offset: from then on it does not move.
    pub async fn settled_head(&self) -> Option<i64> {
        // The order matters.
        let is_anything_staged = pglog::is_anything_staged(&self.client, pglog::Partition::FIRST).await.unwrap();
        let head = pglog::head(&self.client, pglog::Partition::FIRST).await.unwrap();
        (!is_anything_staged).then_some(head)
    }

    /// Asserts conservation: every record has an offset, and each of these consumers has folded all of them, to the
    /// millimetre and at the same offsets.
    ///
    /// # Panics
    /// A record was lost, folded twice, or folded at another offset.
    pub async fn assert_converged(&self, names: &[&str]) {
        let head = self.settled_head().await.expect("every record that is staged has an offset");
        let (ride_count, total_distance_mm) = self.sql_totals().await;
        let (_, first) = self.committed(names[0]).await;
        for name in names {
            let (last_offset, state) = self.committed(name).await;
            assert_eq!(last_offset, head, "{name} is at the head");
            assert_eq!(
                (state.ride_count, state.total_distance_mm),
                (ride_count, total_distance_mm),
                "{name} equals SQL"
            );
            assert_eq!(state.digest, first.digest, "{name} folded the same rides at the same offsets");
        }
    }

    /// The result of a query that returns one number.
    pub async fn number(&self, query: &str) -> i64 {
        self.client.query_one(query, &[]).await.unwrap().get(0)
    }

    /// The number of sessions in this database that wait for a lock.
    pub async fn waiting_count(&self) -> i64 {
        self.waiting_count_where("true").await
    }

    /// As [`waiting_count`](Self::waiting_count), but only of sessions that meet this condition on `pg_stat_activity`.
    pub async fn waiting_count_where(&self, condition: &str) -> i64 {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        self.number(&format!("{waiting} AND {condition}")).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let Some((maintenance, database)) = self.maintenance.take() else { return };
        // A failed test keeps its database, so that the cause can be looked for.
        if std::thread::panicking() {
            eprintln!("the database of this test is kept: {database}");
            return;
        }
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = connect(&maintenance).await;
                client.batch_execute(&format!("DROP DATABASE {database} WITH (FORCE)")).await.unwrap();
            });
        });
        dropping.join().unwrap();
    }
}

/// Writes `count` rides and their records in one transaction, without the api.
pub async fn write_rides(client: &impl Session, count: i64) {
    client
        .execute(
            "WITH written AS (
                 INSERT INTO rides (distance_mm) SELECT 1 + (random() * 1000000)::bigint FROM generate_series(1, $1::bigint)
                 RETURNING id, distance_mm)
             INSERT INTO staged_log_records (partition, object, action, data)
             SELECT partition_of(id::text), 'ride', 'create', format('{\"id\":%s,\"distance_mm\":%s}', id, distance_mm)::json FROM written",
            &[&count],
        )
        .await
        .unwrap();
}

fn from_environment(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run the tests with bin/test, which starts servers"))
}
