//! A private Redis with a read model, and wallets whose histories are known.

use std::time::Duration;

use pglog::Partition;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tests::{PrivateRedis, mark, wait_until};
use wallet::documents::{Change, Document, TRANSACTION_COUNT_MAX, Transaction};
use wallet::model::{Away, Epoch, Marked, Model, Written};
use wallet::{EventId, WalletId};

/// The name of the stream, with which the key of the mark begins.
pub const LOG: &str = "a-log";
pub const MARK: &str = "a-log:wallets";

/// Longer than any machine stops a test for.
pub const WAIT: Duration = Duration::from_secs(20);

/// A server, a model on it, and a connection to look at the server.
pub struct Fixture {
    pub redis: PrivateRedis,
    pub model: Model,
    pub connection: MultiplexedConnection,
}

impl Fixture {
    /// A model without a mark.
    pub async fn start(settings: &[&str]) -> Self {
        let redis = PrivateRedis::start(settings).await;
        let model = model_on(&redis, WAIT).await;
        let connection = connect(&redis).await;
        Self { redis, model, connection }
    }

    /// A model with a mark at offset 10.
    pub async fn begun() -> (Self, Epoch) {
        let fixture = Self::start(&[]).await;
        let epoch = fixture.begin().await;
        (fixture, epoch)
    }

    /// Begins an epoch at offset 10.
    pub async fn begin(&self) -> Epoch {
        let epoch = Epoch::random();
        let expected = self.model.mark().await.unwrap().map(|mark| mark.epoch);
        assert!(self.model.begin(expected, &mark(epoch, 10, -1)).await.unwrap());
        epoch
    }

    /// Writes documents, and moves the mark from a bound to an offset.
    pub async fn advance(
        &self,
        epoch: Epoch,
        documents: &[Document],
        bound: i64,
        offset: i64,
        token: i64,
    ) -> Result<Written, Away> {
        self.model.advance(epoch, documents, (Partition::FIRST, bound), Marked { offset, token }).await
    }

    /// Puts documents that are expected to be taken.
    pub async fn put(&self, epoch: Epoch, document: &Document) -> Written {
        self.model.put(Some(epoch), std::slice::from_ref(document)).await.unwrap()
    }

    /// The text of a wallet's document.
    pub async fn text(&self, wallet: WalletId) -> Option<String> {
        self.connection.clone().get(format!("wallet.{wallet}")).await.unwrap()
    }

    /// The version that a reader sees.
    pub async fn version(&self, wallet: WalletId) -> Option<i64> {
        self.model.head(wallet).await.unwrap().map(|head| head.version)
    }

    /// Runs a command.
    pub async fn run(&self, command: &[&str]) -> redis::Value {
        let mut line = redis::cmd(command[0]);
        command[1..].iter().for_each(|arg| {
            line.arg(arg);
        });
        line.query_async(&mut self.connection.clone()).await.unwrap()
    }
}

/// A model on a server, once it is connected.
pub async fn model_on(redis: &PrivateRedis, wait: Duration) -> Model {
    let model = Model::start(stream::redis::client(&redis.url()).unwrap(), LOG, wait);
    wait_until("the model is connected", async || model.mark().await.is_ok()).await;
    model
}

pub async fn connect(redis: &PrivateRedis) -> MultiplexedConnection {
    stream::redis::connect(&stream::redis::client(&redis.url()).unwrap()).await.unwrap()
}

/// All events of a wallet that was only credited: one cent, then two, and so on.
pub struct History {
    pub wallet: WalletId,
    /// Oldest first.
    transactions: Vec<Transaction>,
}

impl History {
    /// A history of `len` events.
    pub fn new(len: i64) -> Self {
        let transaction = |version| Transaction {
            timestamp: jiff::Timestamp::from_microsecond(1_700_000_000_000_000 + version).unwrap(),
            counterparty: (version % 3 == 0).then(WalletId::new),
            amount_minor: version,
            version,
            event_id: EventId::new(),
        };
        Self { wallet: WalletId::new(), transactions: (1..=len).map(transaction).collect() }
    }

    /// The same wallet after Postgres was put back to the event `version`, and `len` events since then.
    pub fn fork(&self, version: i64, len: i64) -> Self {
        let mut fork = Self::new(version + len);
        fork.wallet = self.wallet;
        fork.transactions[..version as usize].copy_from_slice(&self.transactions[..version as usize]);
        fork
    }

    /// The document at a version.
    pub fn document(&self, version: i64) -> Document {
        let transactions = self.newest(version, TRANSACTION_COUNT_MAX as i64);
        let Transaction { event_id, timestamp, .. } = transactions[0];
        let balance_minor = version * (version + 1) / 2;
        Document { wallet: self.wallet, version, event_id, timestamp, balance_minor, transactions }
    }

    /// The events after `from` up to `to`.
    pub fn change(&self, from: i64, to: i64) -> Change {
        let before = (from > 0).then(|| self.transactions[from as usize - 1].event_id);
        let balance_minor = to * (to + 1) / 2;
        Change { wallet: self.wallet, before, balance_minor, transactions: self.newest(to, to - from) }
    }

    fn newest(&self, version: i64, count: i64) -> Vec<Transaction> {
        self.transactions[..version as usize].iter().rev().take(count as usize).copied().collect()
    }
}
