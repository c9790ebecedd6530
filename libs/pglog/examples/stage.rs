//! Changes an account, and stages a record of the change in the same transaction.
//!
//! ```text
//! psql "$DATABASE_URL" -f libs/pglog/log.sql -f libs/pglog/examples/stage.sql
//! DATABASE_URL=postgres://… cargo run -p pglog --example stage -- 7 5
//! DATABASE_URL=postgres://… cargo run -p pglog --example stage -- 7 -100
//! ```
//!
//! The first command adds 5 to account 7 and stages the record `account credit`. The second would make the balance negative:
//! Postgres refuses it, so no record is staged either. This program writes nothing to the stream: a streamer does, after
//! the transaction has committed.

use pglog::NewRecord;
use tokio_postgres::{Client, NoTls};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("DATABASE_URL").map_err(|_| "DATABASE_URL is not set: where is Postgres?")?;
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<i64>());
    let (Some(Ok(account_id)), Some(Ok(amount))) = (args.next(), args.next()) else {
        return Err("give an account and an amount, for example: stage 7 5".into());
    };
    let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    let balance = credit(&mut client, account_id, amount).await?;
    // After COMMIT. If the hint is lost, the streamer finds the record a tenth of a second later.
    pglog::hint(&client).await?;
    println!("account {account_id} has {balance}");
    Ok(())
}

/// Commits the change and its record together, or neither of them. Returns the new balance.
async fn credit(client: &mut Client, account_id: i64, amount: i64) -> Result<i64, tokio_postgres::Error> {
    let tx = client.transaction().await?;
    tx.execute("INSERT INTO accounts (id, balance) VALUES ($1, 0) ON CONFLICT DO NOTHING", &[&account_id]).await?;
    let change = "UPDATE accounts SET balance = balance + $2 WHERE id = $1 RETURNING balance";
    let row = tx.query_one(change, &[&account_id, &amount]).await?;
    // Last, because the transaction now holds the account's lock. A second transaction on this account waits for this COMMIT,
    // so the log has the records of one account in the order of their commits.
    let (key, data) = (format!("account-{account_id}"), format!(r#"{{"id":{account_id},"amount":{amount}}}"#));
    let record = NewRecord { key: &key, object: "account", action: "credit", data: &data, ..NewRecord::default() };
    pglog::stage(&tx, record).await?;
    tx.commit().await?;
    Ok(row.get(0))
}
