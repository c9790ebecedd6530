//! A separate world per test: a database that is cloned from a template, or a prefix in Redis.
//!
//! `bin/test` starts the servers, or run
//! `target/debug/launcher with-servers --data .data/idem -- cargo test -p idempotency`.
#![allow(dead_code, reason = "no test needs all of it")]

pub mod server;

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use idempotency::{Claim, Claimed, Operation, PostgresStore, RedisStore, ResultsInRedis, Store, Tracked};
use redis::aio::MultiplexedConnection;
use tokio_postgres::{Config, NoTls};

/// The database from which the database of each test is cloned.
const TEMPLATE: &str = "idempotency_template";

/// Longer than any test runs.
pub const HOUR: Duration = Duration::from_secs(3600);

/// The store of one test, and changes that only a test makes.
#[allow(async_fn_in_trait, reason = "tests alone call it")]
pub trait World: Sized {
    /// The store under test.
    type Store: Store;

    /// A world with an empty store.
    async fn new() -> Self;

    /// The store.
    fn store(&self) -> Self::Store;

    /// Lets an operation expire an hour ago.
    async fn expire(&self, request: &Operation);

    /// Lets the claim of an operation run out an hour ago.
    async fn time_out(&self, request: &Operation);

    /// Claims an operation that is not finished.
    async fn claim(&self, request: &Operation) -> Claim {
        match self.store().claim(request).await.unwrap() {
            Claimed::Mine(claim) => claim,
            Claimed::Finished(_) => panic!("it is finished"),
        }
    }

    /// An operation that is stored.
    async fn find(&self, request: &Operation) -> Tracked {
        self.store().find(&request.target, &request.key).await.unwrap().expect("the operation is known")
    }

    /// Claims and finishes an operation.
    async fn finish(&self, request: &Operation, result: &[u8]) {
        let claim = self.claim(request).await;
        self.store().finish(&claim, result).await.unwrap();
    }

    /// Claims and fails an operation.
    async fn fail(&self, request: &Operation) {
        let claim = self.claim(request).await;
        assert!(self.store().fail(&claim, "Boom!").await.unwrap());
    }
}

/// An operation under `key` whose claims hold for an hour, and that does not expire.
pub fn operation(key: &str) -> Operation {
    Operation::new("[POST]/rides", key, "payload", HOUR)
}

/// An operation that expires in an hour.
pub fn expiring(key: &str) -> Operation {
    Operation { expiration: Some(HOUR), ..operation(key) }
}

/// Runs each of these functions in a world of each kind.
#[macro_export]
macro_rules! on_every_store {
    ($($name:ident)*) => {
        mod in_postgres {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                use $crate::support::World;
                super::$name(&$crate::support::PostgresWorld::new().await).await;
            }
        )*}
        mod in_both {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                use $crate::support::World;
                super::$name(&$crate::support::ResultsInRedisWorld::new().await).await;
            }
        )*}
        mod in_redis {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                use $crate::support::World;
                super::$name(&$crate::support::RedisWorld::new().await).await;
            }
        )*}
    };
}

/// A database.
pub struct PostgresWorld {
    maintenance_url: String,
    database: String,
    pub pool: Pool,
}

impl PostgresWorld {
    /// A connection to the test's database.
    pub async fn client(&self) -> Object {
        self.pool.get().await.unwrap()
    }

    /// The number that a query returns.
    pub async fn number(&self, query: &str) -> i64 {
        self.client().await.query_one(query, &[]).await.unwrap().get(0)
    }

    async fn set_past(&self, column: &str, request: &Operation) {
        let statement = format!(
            "UPDATE tracked_operations SET {column} = now() - INTERVAL '1 hour' WHERE target = $1 AND key = $2"
        );
        let changed_count = self.client().await.execute(&statement, &[&request.target, &request.key]).await.unwrap();
        assert_eq!(changed_count, 1);
    }
}

impl World for PostgresWorld {
    type Store = PostgresStore;

    async fn new() -> Self {
        let maintenance_url = from_environment("DATABASE_URL");
        let maintenance = pool(&maintenance_url, 1);
        let client = maintenance.get().await.expect("the Postgres of DATABASE_URL answers");
        create_template(&client, &maintenance_url).await;
        let database = format!("t_{:016x}", rand::random::<u64>());
        client.batch_execute(&format!("CREATE DATABASE {database} TEMPLATE {TEMPLATE}")).await.unwrap();
        let pool = pool(&with_database(&maintenance_url, &database), 50);
        Self { maintenance_url, database, pool }
    }

    fn store(&self) -> PostgresStore {
        PostgresStore::new(self.pool.clone())
    }

    async fn expire(&self, request: &Operation) {
        self.set_past("expires_at", request).await;
    }

    async fn time_out(&self, request: &Operation) {
        self.set_past("timeout_at", request).await;
    }
}

impl Drop for PostgresWorld {
    fn drop(&mut self) {
        // A failed test keeps its database, so that a person can look for the cause.
        if std::thread::panicking() {
            eprintln!("the database of this test is kept: {}", self.database);
            return;
        }
        let (url, database) = (self.maintenance_url.clone(), self.database.clone());
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = pool(&url, 1).get().await.unwrap();
                client.batch_execute(&format!("DROP DATABASE {database} WITH (FORCE)")).await.unwrap();
            });
        });
        dropping.join().unwrap();
    }
}

/// A prefix in Redis.
pub struct RedisWorld {
    pub client: redis::Client,
    pub prefix: String,
}

impl RedisWorld {
    /// A connection to Redis.
    pub async fn connection(&self) -> MultiplexedConnection {
        self.client.get_multiplexed_async_connection().await.expect("the Redis of REDIS_URL answers")
    }

    async fn set_past(&self, field: &str, index: &str, request: &Operation) {
        let operation = format!("{}:{{{}}}:{}", self.prefix, request.target, request.key);
        let ((now_s, _), changed_count): ((i64, i64), i64) = redis::pipe()
            .cmd("TIME")
            .cmd("EXISTS")
            .arg(&operation)
            .query_async(&mut self.connection().await)
            .await
            .unwrap();
        assert_eq!(changed_count, 1);
        let past_us = (now_s - 3600) * 1_000_000;
        let mut pipe = redis::pipe();
        pipe.hset(&operation, field, past_us).ignore();
        pipe.cmd("ZADD").arg(format!("{}:{index}", self.prefix)).arg("XX").arg(past_us).arg(&operation).ignore();
        pipe.query_async::<()>(&mut self.connection().await).await.unwrap();
    }
}

impl World for RedisWorld {
    type Store = RedisStore;

    async fn new() -> Self {
        let client = redis::Client::open(from_environment("REDIS_URL")).unwrap();
        Self { client, prefix: format!("t_{:016x}", rand::random::<u64>()) }
    }

    fn store(&self) -> RedisStore {
        RedisStore::new(self.client.clone(), &self.prefix)
    }

    async fn expire(&self, request: &Operation) {
        let status = self.find(request).await.status;
        self.set_past("expires_at", &format!("expires:{}", status.name()), request).await;
    }

    async fn time_out(&self, request: &Operation) {
        self.set_past("timeout_at", "timeouts", request).await;
    }
}

/// A database, and all of its results in Redis.
pub struct ResultsInRedisWorld {
    pub postgres: PostgresWorld,
    pub redis: RedisWorld,
}

impl World for ResultsInRedisWorld {
    type Store = ResultsInRedis;

    async fn new() -> Self {
        Self { postgres: PostgresWorld::new().await, redis: RedisWorld::new().await }
    }

    fn store(&self) -> ResultsInRedis {
        ResultsInRedis::new(self.postgres.store(), self.redis.client.clone(), &self.redis.prefix, 0, HOUR)
    }

    async fn expire(&self, request: &Operation) {
        self.postgres.expire(request).await;
    }

    async fn time_out(&self, request: &Operation) {
        self.postgres.time_out(request).await;
    }
}

/// The first test makes the template; the other tests wait for it.
async fn create_template(client: &Object, maintenance_url: &str) {
    client.execute("SELECT pg_advisory_lock(7306930024)", &[]).await.unwrap();
    let query = "SELECT datname FROM pg_database WHERE datname = $1";
    if client.query_opt(query, &[&TEMPLATE]).await.unwrap().is_none() {
        client.batch_execute(&format!("CREATE DATABASE {TEMPLATE}")).await.unwrap();
        let template = pool(&with_database(maintenance_url, TEMPLATE), 1);
        let schema = include_str!("../../../../../schema.sql");
        pglog::apply_schema(&**template.get().await.unwrap(), schema, None).await.unwrap();
        template.close();
        // Postgres clones a template only if no session uses it, and it notices the end of a connection a moment later.
        wait_until("the template is left alone", async || {
            let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1";
            client.query_one(others, &[&TEMPLATE]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
    }
    client.execute("SELECT pg_advisory_unlock(7306930024)", &[]).await.unwrap();
}

/// Waits for a condition, at most half a minute.
pub async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

fn pool(url: &str, size: usize) -> Pool {
    let config: Config = url.parse().unwrap();
    let manager = Manager::from_config(config, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    Pool::builder(manager).max_size(size).build().unwrap()
}

/// The URL of another database on the same server.
fn with_database(url: &str, database: &str) -> String {
    let (server, _) = url.rsplit_once('/').expect("a URL ends with /database");
    format!("{server}/{database}")
}

fn from_environment(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run the tests with bin/test, which starts servers"))
}
