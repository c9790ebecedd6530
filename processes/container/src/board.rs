//! A destination in Redis: the leaderboard of subjects by their count of passengers. Each step is one script, which Redis runs
//! as a whole.
//!
//! | key | content |
//! | --- | --- |
//! | `<prefix>:unit:<key>` | the register, a hash: attempt → its arrival, or `undone` |
//! | `<prefix>:arrivals:<subject>` | the arrivals of a subject, beside each other, by the number of the unit: `<key>.<attempt>.<count>` |
//! | `<prefix>:board` | the leaderboard: subject → the count of its newest arrival |
//! | `<prefix>:server` | the run id of the server that the board was built on |
//! | `<prefix>:rebuild:<id>` | the witness of a rebuild, as long as Redis has not forgotten again |
//!
//! An undo removes its own arrival, and the newest of the others counts. So units of one subject may be stored and undone in any
//! order. An arrival is shown before the verdict of its unit.
//!
//! Redis may lose what it has acknowledged. [`Board::is_lost`] sees that another server replies, or the same one after a restart.
//! [`Board::rebuild`] then builds the board from what Postgres knows. With an eviction policy Redis may lose one key silently, so
//! it must be `noeviction`. It must be a server and no Redis Cluster: the keys of one step are in several slots there.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{Stream, TryStreamExt};
use redis::aio::MultiplexedConnection;
use redis::{AsyncTypedCommands, Client, FromRedisValue, RedisResult, Script, ScriptInvocation};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::sync::Mutex;
use tokio::time::sleep;
use uuid::Uuid;

use crate::destination::{Destination, Outcome, Refusal, Unit, UnitRef};

/// Commands of a rebuild that are in flight together.
const REBUILD_WIDTH: usize = 64;

macro_rules! script {
    ($name:ident, $file:literal) => {
        static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!(include_str!("board/show.lua"), include_str!($file))));
    };
}

/// How long Redis keeps the witness of a rebuild whose process was killed.
const WITNESS_AGE_MAX: Duration = Duration::from_secs(60);

const FORGOTTEN_AGAIN: &str = "Redis has forgotten once more while the board was built";

/// Marks the board as built by the server with this run id, if the server knows the witness of the rebuild.
static BUILT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("board/built.lua")));

script!(STORE, "board/store.lua");
script!(UNDO, "board/undo.lua");
script!(FORGET, "board/forget.lua");

/// A leaderboard in Redis.
pub struct Board {
    client: Client,
    prefix: String,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// The run id of a Redis server: it changes with each start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunId(String);

/// One attempt as Postgres knows it, for a rebuild.
#[derive(Debug, Clone)]
pub struct Past {
    /// As [`UnitRef::uow`].
    pub uow: i64,
    /// As [`UnitRef::key`]. It may be nil if the row of the committed unit is gone.
    pub key: Uuid,
    /// As [`UnitRef::attempt`].
    pub attempt: i32,
    /// As [`UnitRef::subject`].
    pub subject: String,
    /// The document of an attempt that has committed, or that is in flight. `None`: the attempt was undone.
    pub document: Option<Bytes>,
}

impl Board {
    /// The board of this server, under keys that begin with `prefix`. Connects at the first step, and anew after an error.
    pub fn new(client: Client, prefix: impl Into<String>) -> Self {
        Self { client, prefix: prefix.into(), connection: Mutex::default() }
    }

    /// The subjects with the highest counts, the highest first.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn leaders(&self, count_max: u16) -> Result<Vec<(String, u64)>> {
        let mut command = redis::cmd("ZREVRANGE");
        command.arg(self.key("board")).arg(0).arg(i64::from(count_max) - 1).arg("WITHSCORES");
        self.with(async |mut connection| command.query_async(&mut connection).await).await.context("reading the board")
    }

    /// Whether Redis may have forgotten parts of the board: it was never built on this server, or the server has restarted.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn is_lost(&self) -> Result<Option<RunId>> {
        let info: String = self
            .with(async |mut connection| redis::cmd("INFO").arg("server").query_async(&mut connection).await)
            .await
            .context("asking Redis for its run id")?;
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).context("Redis shows no run id")?;
        let key = self.key("server");
        let built: Option<String> = self.with(async |mut connection| connection.get(&key).await).await?;
        Ok((built.as_deref() != Some(run_id)).then(|| RunId(run_id.to_owned())))
    }

    /// Builds the board again. `past` has the newest committed attempt of each subject, each attempt that may have been stored
    /// and was in flight when `past` was begun, and each undone attempt of a unit whose row exists, in any order. Steps of other
    /// workers may come between: every step may be repeated. `lost` comes from [`is_lost`](Self::is_lost), which must be asked
    /// before `past` is read.
    ///
    /// # Errors
    /// Redis is away or has forgotten once more, or `past` has failed. The board stays marked as lost.
    pub async fn rebuild(&self, lost: RunId, past: impl Stream<Item = Result<Past>>) -> Result<()> {
        // Redis may forget once more meanwhile, and then it forgets this key, too.
        let witness = self.key(&format!("rebuild:{}", Uuid::new_v4()));
        self.with(async |mut connection| connection.set_ex(&witness, 1, WITNESS_AGE_MAX.as_secs()).await).await?;
        let replaying = past.try_for_each_concurrent(REBUILD_WIDTH, async |past| Ok(self.replay(&past).await?));
        let replayed = tokio::select! {
            replayed = replaying => replayed,
            forgotten = self.watch(&witness) => forgotten,
        };
        replayed.context("rebuilding the board")?;
        let mut built = BUILT.key(&witness);
        let built = built.key(self.key("server")).arg(&lost.0);
        let is_built: bool = self.with(async |mut connection| built.invoke_async(&mut connection).await).await?;
        ensure!(is_built, FORGOTTEN_AGAIN);
        Ok(())
    }

    /// Ends with an error when Redis has forgotten the witness.
    async fn watch(&self, witness: &str) -> Result<()> {
        loop {
            sleep(WITNESS_AGE_MAX / 30).await;
            let age_max = WITNESS_AGE_MAX.as_secs() as i64;
            let is_known = self.with(async |mut connection| connection.expire(witness, age_max).await).await?;
            ensure!(is_known, FORGOTTEN_AGAIN);
        }
    }

    async fn replay(&self, past: &Past) -> Result<(), Refusal> {
        let Past { uow, key, attempt, ref subject, .. } = *past;
        let unit = UnitRef { uow, key, attempt, resource: "", subject };
        let Some(document) = &past.document else { return self.undo(unit).await };
        match self.put(unit, document).await {
            Outcome::Failed(refusal) if refusal.is_passing() => Err(refusal),
            // A final refusal: the attempt was in flight, and is undone by now.
            _ => Ok(()),
        }
    }

    async fn put(&self, unit: UnitRef<'_>, document: &[u8]) -> Outcome {
        let Ok(Manifest { passengers }) = serde_json::from_slice(document) else {
            return Outcome::Failed(Refusal::new(422, "give the document's passengers as a list"));
        };
        match self.run(self.step(&STORE, unit).arg(passengers.len())).await {
            Ok(true) => Outcome::Stored,
            Ok(false) => Outcome::Failed(Refusal::undone()),
            Err(refusal) => Outcome::Failed(refusal),
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }

    /// A step about one attempt. Its keys are the register, the arrivals and the board.
    fn step<'a>(&self, script: &'a Script, unit: UnitRef<'_>) -> ScriptInvocation<'a> {
        let mut step = script.key(self.key(&format!("unit:{}", unit.key)));
        step.key(self.key(&format!("arrivals:{}", unit.subject))).key(self.key("board"));
        step.arg(unit.key.to_string()).arg(unit.attempt).arg(unit.uow).arg(unit.subject);
        step
    }

    async fn run<T: FromRedisValue>(&self, step: &ScriptInvocation<'_>) -> Result<T, Refusal> {
        let reply = self.with(async |mut connection| step.invoke_async(&mut connection).await).await;
        reply.map_err(|error| Refusal::new(503, format!("Redis: {error:#}")))
    }

    /// Runs a command on the shared connection. After an error the next command connects anew, because the connection may be
    /// broken.
    async fn with<T>(&self, command: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>) -> Result<T> {
        let connection = {
            let mut shared = self.connection.lock().await;
            match &*shared {
                Some(connection) => connection.clone(),
                None => shared.insert(stream::redis::connect_to_server(&self.client, "the board").await?).clone(),
            }
        };
        let reply = command(connection).await;
        if reply.is_err() {
            *self.connection.lock().await = None;
        }
        Ok(reply?)
    }
}

impl Destination for Board {
    fn store<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Outcome> {
        Box::pin(self.put(unit.reference(), &unit.document))
    }

    fn undo<'a>(&'a self, unit: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async move { self.run(&self.step(&UNDO, unit)).await })
    }

    fn forget<'a>(&'a self, unit: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async move { self.run(&self.step(&FORGET, unit)).await })
    }
}

/// The part of a document that the board reads.
#[derive(Deserialize)]
struct Manifest {
    passengers: Vec<IgnoredAny>,
}
