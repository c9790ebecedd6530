//! Wallets without the api: valid events with their records, and the comparison of the read model with Postgres.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use deadpool_postgres::ClientWrapper as Client;
use pglog::Session;
use tokio::task::JoinHandle;
use wallet::documents::docs;
use wallet::model::{Epoch, Mark, Marked, Model};
use wallet::{EventId, WalletId};

use crate::{World, wait_until};

/// The documents of all wallets as Postgres has them, from behind the epoch on.
const EXPECTED: &str = r#"
    SELECT wallet_id::text,
           format('","version_id":%s,"event_id":"%s","timestamp":"%s","name":"wallet.%s","entity_id":"%s","data":{"timestamp":"%s",'
                      '"balance":%s,"transactions":[%s]}}',
                  versions[1], event_ids[1], times[1], wallet_id, wallet_id, times[1], balances[1],
                  array_to_string(transactions, ','))
    FROM wallet_locks CROSS JOIN LATERAL (
        SELECT array_agg(version) AS versions, array_agg(event_id) AS event_ids, array_agg(time) AS times,
               array_agg(balance) AS balances,
               array_agg(format('{"timestamp":"%s","source_entity_id":"%s","amount":%s,"version":%s,"event_id":"%s"}',
                                time, counterparty, amount, version, event_id)) AS transactions
        FROM (SELECT version, event_id, counterparty, (balance_minor / 100.0)::numeric(20, 2) AS balance,
                     (amount_minor / 100.0)::numeric(20, 2) AS amount,
                     to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS time
              FROM wallet_events AS e WHERE e.wallet_id = wallet_locks.wallet_id AND accepted
              ORDER BY version DESC LIMIT 20) AS newest) AS document
    WHERE versions IS NOT NULL"#;

/// A mark of a log with one partition.
pub fn mark(epoch: Epoch, offset: i64, token: i64) -> Mark {
    Mark::new(epoch, [Marked { offset, token }])
}

/// Credits each of these wallets, or debits them if the amount is negative. One transaction writes an event and a record per
/// wallet. As in the api, a debit of more than the balance is rejected.
pub async fn change_wallets(client: &Client, wallets: &[WalletId], amount_minor: i64) {
    let ids: Vec<&str> = wallets.iter().map(WalletId::as_str).collect();
    let event_ids: Vec<String> = wallets.iter().map(|_| EventId::new().to_string()).collect();
    client.batch_execute("BEGIN").await.unwrap();
    let add_rows = "INSERT INTO wallet_locks SELECT id FROM unnest($1::text[]) AS id ORDER BY id COLLATE \"C\" \
                    ON CONFLICT DO NOTHING";
    Session::execute(client, add_rows, &[&ids]).await.unwrap();
    let lock = "SELECT FROM wallet_locks WHERE wallet_id = ANY($1::text[]) ORDER BY wallet_id FOR UPDATE";
    Session::query(client, lock, &[&ids]).await.unwrap();
    let write = "
        WITH decided AS (
            SELECT command.*, state.*, state.balance + $3 >= 0 AS is_accepted
            FROM unnest($1::text[], $2::text[]) AS command (wallet_id, event_id) CROSS JOIN LATERAL (
                SELECT COALESCE(max(version), 0) AS version, COALESCE((array_agg(balance_minor))[1], 0) AS balance
                FROM (SELECT version, balance_minor FROM wallet_events AS e
                      WHERE e.wallet_id = command.wallet_id AND accepted ORDER BY version DESC LIMIT 1) AS newest) AS state),
        written AS (
            INSERT INTO wallet_events
                (event_id, wallet_id, version, balance_minor, accepted, reason, action, amount_minor)
            SELECT event_id, wallet_id, version + is_accepted::int, balance + CASE WHEN is_accepted THEN $3 ELSE 0 END,
                   is_accepted, CASE WHEN NOT is_accepted THEN 'overdrawn' END,
                   CASE WHEN $3 > 0 THEN 'credit' ELSE 'debit' END, $3
            FROM decided RETURNING *)
        INSERT INTO staged_log_records (partition, object, action, data)
        SELECT partition_of(wallet_id::text), 'wallet', CASE WHEN accepted THEN action ELSE 'reject' END, json_build_object(
            'wallet_id', wallet_id, 'version', version, 'event_id', event_id, 'amount_minor', amount_minor,
            'balance_minor', balance_minor, 'counterparty', counterparty)
        FROM written";
    Session::execute(client, write, &[&ids, &event_ids, &amount_minor]).await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
}

/// New ids of wallets.
pub fn new_wallets(count: usize) -> Vec<WalletId> {
    (0..count).map(|_| WalletId::new()).collect()
}

impl World {
    /// The read model, over a connection of its own.
    pub fn wallet_model(&self) -> Model {
        let client = stream::redis::client(self.redis_url()).unwrap();
        Model::start(client, self.stream_name(), Duration::from_secs(1))
    }

    /// Stages the record of a credit that has no event, with the payload `data`.
    pub async fn stage_wallet_data(&self, data: &str) {
        let record = pglog::NewRecord { key: "", object: "wallet", action: "credit", data, traceparent: None };
        pglog::stage(self.client(), record).await.unwrap();
    }

    /// Deletes everything from Redis, the stream included.
    pub async fn forget_wallets(&self) {
        redis::cmd("FLUSHALL").exec_async(&mut self.redis().await).await.unwrap();
    }

    /// The key of the read model's mark.
    pub fn wallets_mark_key(&self) -> String {
        format!("{}:wallets", self.stream_name())
    }

    /// The epoch of the read model, as a text. `None`: there is no mark.
    pub async fn wallets_epoch(&self) -> Option<String> {
        let mut redis = self.try_redis().await?;
        let mark: Option<String> = redis::cmd("GET").arg(self.wallets_mark_key()).query_async(&mut redis).await.ok()?;
        Some(mark?.split('"').nth(3).unwrap().to_owned())
    }

    /// The wallets whose documents in Redis differ from Postgres in any byte, or are not there for readers.
    pub async fn outdated_wallets(&self) -> Vec<String> {
        let rows = Session::query(self.client(), EXPECTED, &[]).await.unwrap();
        let expected: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let found = self.wallet_documents(expected.iter().map(|(id, _)| id)).await;
        let epoch = self.wallets_epoch().await.unwrap_or_default();
        let is_sound = |text: &str, expected: &str| {
            text.strip_prefix(&format!("{{\"epoch\":\"{epoch}")).is_some_and(|text| text == expected)
        };
        let outdated = expected.iter().zip(found).filter(|((_, expected), text)| !is_sound(text, expected));
        outdated.map(|((id, _), _)| id.clone()).collect()
    }

    /// The documents of wallets, empty where there is none or Redis is away.
    async fn wallet_documents<'a>(&self, ids: impl ExactSizeIterator<Item = &'a String>) -> Vec<String> {
        let (count, keys) = (ids.len(), ids.map(|id| format!("wallet.{id}")));
        let read = async {
            let mut redis = self.try_redis().await?;
            redis::cmd("MGET").arg(keys.collect::<Vec<_>>()).query_async::<Vec<Option<String>>>(&mut redis).await.ok()
        };
        if count == 0 {
            return Vec::new();
        }
        let found = read.await.unwrap_or_else(|| vec![None; count]);
        found.into_iter().map(Option::unwrap_or_default).collect()
    }

    /// The wallets whose documents readers believe, and that have no event in Postgres. `None`: Redis is away.
    async fn unknown_wallets(&self) -> Option<Vec<String>> {
        // Other tests have documents in this Redis, too. They are of other epochs.
        let (mut redis, head) = (self.try_redis().await?, format!("{{\"epoch\":\"{}\"", self.wallets_epoch().await?));
        let (mut cursor, mut believed) = (0_u64, Vec::new());
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg("wallet.*").arg("COUNT").arg(1000);
            let (next, keys): (u64, Vec<String>) = scan.query_async(&mut redis).await.ok()?;
            let mut reads = redis::pipe();
            keys.iter().for_each(|key| {
                reads.cmd("GETRANGE").arg(key).arg(0).arg(head.len() - 1);
            });
            let heads: Vec<String> = reads.query_async(&mut redis).await.ok()?;
            let ids = keys.iter().map(|key| key["wallet.".len()..].to_owned());
            believed.extend(ids.zip(heads).filter(|(_, found)| *found == head).map(|(id, _)| id));
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        let unknown = "SELECT id FROM unnest($1::text[]) AS id
                       WHERE NOT EXISTS (SELECT FROM wallet_events WHERE wallet_id = id AND accepted)";
        let rows = Session::query(self.client(), unknown, &[&believed]).await.unwrap();
        Some(rows.iter().map(|row| row.get(0)).collect())
    }

    async fn try_redis(&self) -> Option<redis::aio::MultiplexedConnection> {
        stream::redis::connect(&stream::redis::client(self.redis_url()).unwrap()).await.ok()
    }

    /// Waits until the documents of all wallets equal Postgres and readers believe no other (W6), and the consumer `name` has
    /// passed all that is staged.
    pub async fn wait_until_wallets_equal(&self, name: &str) {
        wait_until("the documents of all wallets equal Postgres", async || {
            self.has_folded_all(name).await
                && self.outdated_wallets().await.is_empty()
                && self.unknown_wallets().await.is_some_and(|unknown| unknown.is_empty())
        })
        .await;
    }
}

/// Changes wallets again and again, and writes their documents behind each commit, as the api does.
pub struct WalletTraffic {
    stopping: Arc<AtomicBool>,
    written_count: Arc<AtomicU64>,
    writing: JoinHandle<()>,
}

impl WalletTraffic {
    /// Begins to write.
    pub async fn start(world: &World, wallets: &[WalletId]) -> Self {
        let (client, model) = (world.connect().await, world.wallet_model());
        let (stopping, written_count) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (wallets, is_stopping, count) = (wallets.to_owned(), Arc::clone(&stopping), Arc::clone(&written_count));
        let writing = tokio::spawn(async move {
            for number in 0.. {
                let changed = &wallets[number % wallets.len()..][..1];
                let epoch = model.epoch();
                change_wallets(&client, changed, if number % 3 == 0 { -700 } else { 500 }).await;
                let documents = docs(&client, changed).await.unwrap();
                // Redis may be away.
                let _ = model.put(epoch, &documents).await;
                count.fetch_add(1, Ordering::Relaxed);
                if is_stopping.load(Ordering::Relaxed) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        Self { stopping, written_count, writing }
    }

    /// Waits until so many more changes are committed.
    pub async fn passes(&self, count: u64) {
        let before = self.written_count.load(Ordering::Relaxed);
        wait_until("more wallets are changed", async || self.written_count.load(Ordering::Relaxed) >= before + count)
            .await;
    }

    /// Ends after the change in hand.
    pub async fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.writing.await.unwrap();
    }
}

/// Reads wallets again and again by the rules of the read model, over two connections in turn, and remembers the newest version
/// of each. It notes each older version that is shown in the same epoch (W6).
pub struct WalletReader {
    reading: JoinHandle<()>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    newest: HashMap<WalletId, (Epoch, i64)>,
    read_count: u64,
    violations: Vec<String>,
}

impl WalletReader {
    /// Begins to read.
    pub fn start(world: &World, wallets: &[WalletId]) -> Self {
        let models = [(); 2].map(|()| world.wallet_model());
        let (wallets, seen) = (wallets.to_owned(), Arc::<Mutex<Seen>>::default());
        let noting = Arc::clone(&seen);
        let reading = tokio::spawn(async move {
            loop {
                for wallet in &wallets {
                    for model in &models {
                        if let Ok(Some(document)) = model.document(*wallet).await {
                            let epoch = model.epoch().unwrap();
                            noting.lock().unwrap().note(*wallet, epoch, document.version);
                        }
                    }
                    tokio::time::sleep(Duration::from_micros(200)).await;
                }
            }
        });
        Self { reading, seen }
    }

    /// The number of documents that were found.
    pub fn read_count(&self) -> u64 {
        self.seen.lock().unwrap().read_count
    }

    /// Ends. Panics if an older version was shown over a newer one of the same epoch.
    pub fn assert_never_older(self) {
        self.reading.abort();
        let seen = self.seen.lock().unwrap();
        assert!(seen.read_count > 0, "the reader found documents");
        assert!(seen.violations.is_empty(), "an older version was shown: {:?}", seen.violations);
    }
}

impl Seen {
    fn note(&mut self, wallet: WalletId, epoch: Epoch, version: i64) {
        self.read_count += 1;
        let newest = self.newest.entry(wallet).or_insert((epoch, version));
        if newest.0 == epoch && newest.1 > version {
            self.violations.push(format!("{wallet} {epoch}: {version} after {}", newest.1));
        }
        *newest = (epoch, version);
    }
}
