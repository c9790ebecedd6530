//! The documents of wallets in Redis, compared with Postgres (W6): each document that readers believe must be the newest state
//! of its wallet. A wallet without a document is no difference, because its readers ask Postgres.
//!
//! Redis is read first, and Postgres after it. So a document may be older than Postgres for a moment, and never newer.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Partition, PartitionCount};
use redis::RedisError;
use redis::aio::MultiplexedConnection;
use stream::Servers;
use tokio::time::sleep;
use tracing::info;
use wallet::documents::{Document, docs};
use wallet::model::{Doubt, Epoch, Mark, Run, find_doubt, mark_key, read_document};
use wallet::{WalletId, decimal};

use super::Config;
use super::report::{DocumentsLine, Report};

/// Keys that Redis looks at per request.
const PAGE_LEN: usize = 500;

/// How long the audit waits until the documents of a page that are older than Postgres are up to date.
const CATCH_UP_WAIT: Duration = Duration::from_secs(5);

/// How long it waits for all pages together. If nothing is ever written, it should end all the same.
const CATCH_UP_WAIT_IN_ALL: Duration = Duration::from_secs(60);

/// Any key: the node that has it says whether it is one of a cluster.
const CLUSTER_PROBE: &str = "wallet.";

/// The pause between two looks at such documents.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Compares all documents. There is no line in the report if there is no read model.
///
/// # Errors
/// Postgres is away. If Redis is, that is reported as a difference.
pub(super) async fn audit(client: &Client, config: &Config, count: PartitionCount, report: &mut Report) -> Result<()> {
    let own = config.wallets.wallets_redis_url.as_ref();
    if own.is_none() && is_cluster(&config.stream.redis_url).await {
        report
            .note("wallets in Redis: not compared: REDIS_URL is a cluster, and they need WALLETS_REDIS_URL".to_owned());
        return Ok(());
    }
    let server = own.unwrap_or(config.stream.redis_url.first());
    let compared = match stream::redis::connect(server).await {
        Ok(redis) => compare(client, redis, config, count, report).await,
        Err(error) => {
            not_compared(&error, report);
            return Ok(());
        }
    };
    match compared {
        Err(error) if error.is::<RedisError>() => {
            not_compared(&error, report);
            Ok(())
        }
        compared => compared,
    }
}

/// Whether the streams are on a Redis Cluster, which cannot have the documents.
async fn is_cluster(servers: &Servers) -> bool {
    servers.is_cluster() || servers.wire(CLUSTER_PROBE, Duration::ZERO).await.is_ok_and(|wire| wire.is_cluster())
}

fn not_compared(error: &anyhow::Error, report: &mut Report) {
    report.differ(format!("wallets in Redis: not compared, {error:#} (--no-stream audits Postgres only)"));
}

async fn compare(
    client: &Client,
    redis: MultiplexedConnection,
    config: &Config,
    count: PartitionCount,
    report: &mut Report,
) -> Result<()> {
    let mut comparison =
        Comparison { client, redis, mark_key: mark_key(&config.stream.stream_name), wait_left: CATCH_UP_WAIT_IN_ALL };
    // The checkpoints are read before the mark, which is never below them.
    let checkpoints = checkpoints(client).await?;
    let has_projector = !checkpoints.is_empty();
    // Without a projector the mark is compared with the log alone.
    let checkpoints = if has_projector { checkpoints } else { count.partitions().map(|one| (one, 0)).collect() };
    let run = run(&mut comparison.redis).await?;
    let mark = comparison.mark().await?;
    let doubt = find_doubt(client, mark.as_ref(), (run, None), &checkpoints).await;
    let doubt = doubt.context("comparing the mark with the log")?;
    let (Some(mark), None | Some(Doubt::Behind | Doubt::BeyondHead | Doubt::OtherToken)) = (mark, doubt) else {
        if let (true, Some(doubt)) = (has_projector, doubt) {
            report.note(format!("wallets in Redis: {doubt}; readers ask Postgres for every wallet"));
        }
        return Ok(());
    };
    if let Some(doubt) = doubt {
        report.differ(format!(
            "wallets in Redis: {doubt} (offset {}, checkpoint {})",
            mark.offset(),
            checkpoints.iter().map(|(_, offset)| offset).sum::<i64>()
        ));
    }
    let mut line = DocumentsLine { epoch: mark.epoch.to_string(), offset: mark.offset(), ..DocumentsLine::default() };
    let mut cursor = 0_u64;
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg("wallet.*").arg("COUNT").arg(PAGE_LEN);
        let (next, keys): (u64, Vec<String>) =
            scan.query_async(&mut comparison.redis).await.context("looking for documents")?;
        let wallets: Vec<WalletId> = keys.iter().filter_map(|key| key.strip_prefix("wallet.")?.parse().ok()).collect();
        comparison.page(&wallets, &mut line, report).await?;
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    report.documents = Some(line);
    Ok(())
}

/// The run of Redis. Readers believe no document of another.
async fn run(redis: &mut MultiplexedConnection) -> Result<Run> {
    let info: String = redis::cmd("INFO").arg("server").query_async(redis).await.context("asking Redis for its run")?;
    Run::of_info(&info).context("INFO does not contain the run")
}

/// The checkpoint of the consumer that keeps the documents, in each partition. Empty: there is no such consumer.
async fn checkpoints(client: &Client) -> Result<Vec<(Partition, i64)>> {
    let rows = client
        .query(
            "-- operator::audit::projector
             SELECT partition, max(last_offset) FROM checkpoints WHERE fold = 'wallets' GROUP BY partition ORDER BY partition",
            &[],
        )
        .await
        .context("asking for the checkpoint of the consumer wallets")?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The documents of one epoch, and both servers.
struct Comparison<'a> {
    client: &'a Client,
    redis: MultiplexedConnection,
    mark_key: String,
    /// How long it still waits, in all, for documents that are older than Postgres.
    wait_left: Duration,
}

impl Comparison<'_> {
    async fn mark(&mut self) -> Result<Option<Mark>> {
        Ok(self.read(&[]).await?.0)
    }

    /// The mark, and the documents that readers believe.
    async fn read(&mut self, wallets: &[WalletId]) -> Result<(Option<Mark>, Vec<Option<Document>>)> {
        let mut mget = redis::cmd("MGET");
        mget.arg(&self.mark_key);
        wallets.iter().for_each(|wallet| {
            mget.arg(format!("wallet.{wallet}"));
        });
        let mut texts: Vec<Option<Vec<u8>>> = mget.query_async(&mut self.redis).await.context("reading documents")?;
        let documents = texts.split_off(1);
        let mark: Option<Mark> = texts.remove(0).and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok());
        let epoch = mark.as_ref().map(|mark| mark.epoch);
        Ok((mark, documents.iter().map(|text| believed(text.as_deref()?, epoch)).collect()))
    }

    /// Compares the documents of these wallets.
    async fn page(&mut self, wallets: &[WalletId], line: &mut DocumentsLine, report: &mut Report) -> Result<()> {
        let (_, found) = self.read(wallets).await?;
        let states = docs(self.client, wallets).await.context("reading wallets")?;
        let states: BTreeMap<WalletId, &Document> = states.iter().map(|state| (state.wallet, state)).collect();
        let is_late = |wallet: &WalletId, document: &Document| {
            states.get(wallet).is_some_and(|state| state.version > document.version)
        };
        let late = wallets
            .iter()
            .zip(&found)
            .filter(|(wallet, document)| document.as_ref().is_some_and(|document| is_late(wallet, document)));
        let behind = self.catch_up(late.map(|(wallet, _)| (*wallet, states[wallet].version)).collect()).await?;
        for (wallet, document) in wallets.iter().zip(found) {
            let Some(document) = document else {
                line.miss_count += 1;
                continue;
            };
            let has_caught_up = is_late(wallet, &document) && !behind.contains_key(wallet);
            match difference(*wallet, &document, states.get(wallet).copied()).filter(|_| !has_caught_up) {
                None => line.equal_count += 1,
                Some(difference) => {
                    line.different_count += 1;
                    report.differ(format!("wallet {wallet}, version {}: in Redis {difference}", document.version));
                }
            }
        }
        Ok(())
    }

    /// Waits until the documents have these versions, or readers do not believe them any more. Returns those that stay behind.
    async fn catch_up(&mut self, mut late: BTreeMap<WalletId, i64>) -> Result<BTreeMap<WalletId, i64>> {
        let mut waited = Duration::ZERO;
        while !late.is_empty() {
            let wallets: Vec<WalletId> = late.keys().copied().collect();
            let (_, found) = self.read(&wallets).await?;
            for (wallet, document) in wallets.iter().zip(found) {
                if document.is_none_or(|document| document.version >= late[wallet]) {
                    late.remove(wallet);
                }
            }
            if late.is_empty() || waited >= CATCH_UP_WAIT || self.wait_left.is_zero() {
                break;
            }
            if self.wait_left == CATCH_UP_WAIT_IN_ALL {
                info!("waiting for documents that are older than Postgres");
            }
            waited += LOOK_INTERVAL;
            self.wait_left -= LOOK_INTERVAL;
            sleep(LOOK_INTERVAL).await;
        }
        Ok(late)
    }
}

/// The document in a text, if readers believe it.
fn believed(text: &[u8], mark: Option<Epoch>) -> Option<Document> {
    let (epoch, document) = read_document(text)?;
    (Some(epoch) == mark).then_some(document)
}

/// The difference of a document, in words.
fn difference(wallet: WalletId, document: &Document, state: Option<&Document>) -> Option<String> {
    if document.wallet != wallet {
        return Some(format!("its key holds the document of {}", document.wallet));
    }
    let Some(state) = state else { return Some("is a document, and Postgres has no accepted event".to_owned()) };
    if document.version != state.version {
        return Some(format!("is an {} state: Postgres has version {}", age(document, state), state.version));
    }
    let balances = [document, state].map(|document| decimal(document.balance_minor));
    [
        (
            document.event_id != state.event_id,
            format!("is the event {}, and in Postgres {}", document.event_id, state.event_id),
        ),
        (balances[0] != balances[1], format!("the balance is {}, and in Postgres {}", balances[0], balances[1])),
        (document != state, "the transactions or times are others than in Postgres".to_owned()),
    ]
    .into_iter()
    .find_map(|(differs, words)| differs.then_some(words))
}

fn age(document: &Document, state: &Document) -> &'static str {
    if document.version < state.version { "older" } else { "unknown" }
}
