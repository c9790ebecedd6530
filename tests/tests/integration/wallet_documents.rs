//! Documents of wallets out of Postgres.

use pglog::Session;
use tests::{World, wait_until};
use wallet::documents::{DOCS, Document, Transaction, docs};
use wallet::{EventId, WalletId};

use crate::api::Api;

/// Writes events of one cent each: the accepted ones of `versions`, and a rejected one behind each.
async fn write_events(world: &World, wallet: WalletId, versions: std::ops::RangeInclusive<i64>) {
    for version in versions {
        let other = WalletId::new();
        let counterparty = if version % 2 == 0 { other.as_str() } else { "world" };
        for (accepted, reason) in [(true, None), (false, Some("overdrawn"))] {
            world
                .client()
                .execute(
                    "-- tests::wallet_documents
                     INSERT INTO wallet_events (event_id, wallet_id, version, balance_minor, accepted, reason, action,
                                                amount_minor, counterparty)
                     VALUES ($1::text, $2::text, $3, $3, $4, $5::text, 'transfer', 1, $6::text)",
                    &[&EventId::new().as_str(), &wallet.as_str(), &version, &accepted, &reason, &counterparty],
                )
                .await
                .unwrap();
        }
    }
}

/// Writes a hundred events of each of a thousand other wallets.
async fn write_other_events(world: &World) {
    world
        .client()
        .batch_execute(
            "-- tests::wallet_documents::write_other_events
             INSERT INTO wallet_events (event_id, wallet_id, version, balance_minor, accepted, action, amount_minor)
             SELECT '0' || substr(md5(n::text), 1, 26), '1' || substr(md5((n / 100)::text), 1, 26), 1 + n % 100, 1, true,
                    'credit', 1
             FROM generate_series(0, 99999) AS n",
        )
        .await
        .unwrap();
}

/// The document as a naive query finds it.
async fn naive(world: &World, wallet: WalletId) -> Document {
    let rows = world
        .client()
        .query(
            "-- tests::wallet_documents::naive
             SELECT event_id::text, version, amount_minor, balance_minor, counterparty, created_at FROM wallet_events
             WHERE wallet_id = $1::text AND accepted ORDER BY version DESC",
            &[&wallet.as_str()],
        )
        .await
        .unwrap();
    let transactions = rows.iter().map(|row| Transaction {
        timestamp: row.get("created_at"),
        counterparty: row.get::<_, &str>("counterparty").parse().ok(),
        amount_minor: row.get("amount_minor"),
        version: row.get("version"),
        event_id: row.get::<_, &str>("event_id").parse().unwrap(),
    });
    let transactions: Vec<Transaction> = transactions.take(20).collect();
    let Transaction { version, event_id, timestamp, .. } = transactions[0];
    Document { wallet, version, event_id, timestamp, balance_minor: rows[0].get("balance_minor"), transactions }
}

#[tokio::test]
async fn a_document_has_the_newest_accepted_events_and_no_others() {
    let world = World::new().await;
    let api = world.connect_as("api").await;
    let (short, long, unused) = (WalletId::new(), WalletId::new(), WalletId::new());
    assert_eq!(docs(&api, &[]).await.unwrap(), []);
    write_events(&world, short, 1..=3).await;
    write_events(&world, long, 1..=25).await;
    let mut read = docs(&api, &[unused, long, short]).await.unwrap();
    read.sort_by_key(|document| document.version);
    assert_eq!(read, [naive(&world, short).await, naive(&world, long).await]);
    assert_eq!(read[1].transactions.len(), 20);
}

#[tokio::test]
async fn documents_are_read_by_their_index_also_with_a_plan_of_an_empty_table() {
    let world = World::new().await;
    let consumer = world.connect_as("consumer").await;
    pglog::prepare_session(&consumer).await.unwrap();
    // A plan of the empty table, which is kept. After VACUUM the planner knows that the table has no pages.
    world.client().batch_execute("VACUUM wallet_events").await.unwrap();
    let wallet = WalletId::new();
    docs(&consumer, &[wallet]).await.unwrap();
    write_events(&world, wallet, 1..=2).await;
    write_other_events(&world).await;
    let read = "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'wallet_events'";
    consumer.batch_execute("BEGIN").await.unwrap();
    assert_eq!(docs(&consumer, &[wallet]).await.unwrap().len(), 1);
    let read_count: i64 = consumer.query_one(read, &[]).await.unwrap().get(0);
    consumer.batch_execute("ROLLBACK").await.unwrap();
    assert!(read_count < 100, "{read_count} rows were read for one wallet");
    assert!(DOCS.starts_with("-- wallet::docs"));
}

#[tokio::test]
async fn the_api_reads_a_wallet_by_its_index_also_with_a_plan_of_an_empty_table() {
    let world = World::new().await;
    world.client().batch_execute("VACUUM wallet_events").await.unwrap();
    let api = Api::start(&world).await;
    let wallet = WalletId::new();
    let read = async || {
        for path in ["", "/transactions?limit=20", "/transactions?before=100&limit=30"] {
            assert_eq!(api.get(&format!("/wallet/{wallet}{path}")).await.0, 200);
        }
    };
    // By then every connection keeps its plans.
    for _ in 0..60 {
        read().await;
    }
    write_events(&world, wallet, 1..=2).await;
    write_other_events(&world).await;
    let number = async |column: &str| {
        let sum = format!("SELECT sum({column})::bigint FROM pg_stat_user_tables WHERE relname = 'wallet_events'");
        world.number(&sum).await
    };
    let (rows, scans) = (number("seq_tup_read").await, number("seq_scan + idx_scan").await);
    for _ in 0..10 {
        read().await;
    }
    // Postgres counts a little later.
    wait_until("the reads are counted", async || number("seq_scan + idx_scan").await >= scans + 30).await;
    assert_eq!(number("seq_tup_read").await, rows);
}
