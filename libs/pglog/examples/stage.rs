//! Changes a wallet, and tells the log of it in the same transaction.
//!
//! ```text
//! psql "$DATABASE_URL" -f schema.sql -f libs/pglog/examples/stage.sql
//! DATABASE_URL=postgres://… cargo run -p pglog --example stage -- 7 5
//! DATABASE_URL=postgres://… cargo run -p pglog --example stage -- 7 -100
//! ```
//!
//! The first adds 5 to wallet 7 and stages the record `wallet credit`. The second would make the balance negative: Postgres
//! refuses, and there is no record either. The record is not written to the stream here; a streamer does that, once it is
//! committed.

use pglog::NewRecord;
use tokio_postgres::{Client, NoTls};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("DATABASE_URL").map_err(|_| "DATABASE_URL is not set: where is Postgres?")?;
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<i64>());
    let (Some(Ok(wallet_id)), Some(Ok(amount))) = (args.next(), args.next()) else {
        return Err("give a wallet and an amount, for example: stage 7 5".into());
    };
    let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    let balance = credit(&mut client, wallet_id, amount).await?;
    // After COMMIT. If it is lost, the streamer is a tenth of a second later, and nothing else.
    pglog::hint(&client).await?;
    println!("wallet {wallet_id} has {balance}");
    Ok(())
}

/// The write rule: the change and the record of it commit together, or neither does. Returns the new balance.
async fn credit(client: &mut Client, wallet_id: i64, amount: i64) -> Result<i64, tokio_postgres::Error> {
    let tx = client.transaction().await?;
    tx.execute("INSERT INTO wallets (id, balance) VALUES ($1, 0) ON CONFLICT DO NOTHING", &[&wallet_id]).await?;
    let change = "UPDATE wallets SET balance = balance + $2 WHERE id = $1 RETURNING balance";
    let row = tx.query_one(change, &[&wallet_id, &amount]).await?;
    // Last, because the transaction now holds the wallet's lock: who credits the same wallet waits for this COMMIT, so
    // records of one wallet are in the log in the order of their commits.
    let data = format!(r#"{{"id":{wallet_id},"amount":{amount}}}"#);
    pglog::stage(&tx, NewRecord { object: "wallet", action: "credit", data: &data, ..NewRecord::default() }).await?;
    tx.commit().await?;
    Ok(row.get(0))
}
