//! A fold of your own with rows: the balance of every account, from the records that the example `stage` of pglog writes.
//!
//! ```text
//! psql "$DATABASE_URL" -f schema.sql -f ops/roles.sql -f consumer/examples/balances.sql
//! DATABASE_URL=postgres://… REDIS_URL=redis://… cargo run -p consumer --example balances -- balances0
//! ```
//!
//! The loop does the rest for every fold: it skips duplicates, heals gaps, and puts records that can never apply with the dead
//! letters. `--copy-from` copies the balances too, `--replay` folds a dead letter, and `--unregister` deletes the balances with
//! the registration. `--help` shows all flags.

mod program;

use std::process::ExitCode;

use consumer::{CheckpointKey, FoldId, Registry, Rejection, RowFold, RowsOf, Statement, read_object, row_fold};
use pglog::Record;
use serde::Deserialize;

fn main() -> ExitCode {
    program::main(FOLDS)
}

/// The folds of this program.
const FOLDS: Registry = Registry(&[row_fold::<Balances>]);

/// Credits of one page, as columns. The balances themselves stay in the table.
#[derive(Debug, Default)]
struct Balances {
    account_ids: Vec<i64>,
    amounts: Vec<i64>,
}

/// The fields that the payload of `account credit` must have.
#[derive(Deserialize)]
struct Credit {
    id: i64,
    amount: i64,
}

impl RowFold for Balances {
    const ID: FoldId = FoldId { name: "balances", version: 1 };

    const ROWS: RowsOf = RowsOf::Each {
        tables: &["account_balances"],
        copy: "-- balances::copy
               INSERT INTO account_balances (name, partition, account_id, balance)
               SELECT $2, partition, account_id, balance FROM account_balances WHERE name = $1 AND partition = $3",
    };

    fn takes(&self, object: &str, action: &str) -> bool {
        object == "account" && action == "credit"
    }

    /// Works in memory only. An error says that the record can never apply, and nothing may be collected from it.
    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        let credit: Credit = read_object(record, "a credit")?;
        self.account_ids.push(credit.id);
        self.amounts.push(credit.amount);
        Ok(())
    }

    /// The loop runs these statements in the transaction that moves the checkpoint, so a credit is added once, however often
    /// its record arrives.
    fn statements(&mut self, key: &CheckpointKey) -> Vec<Statement> {
        let Self { account_ids, amounts } = std::mem::take(self);
        let adding = Statement::new(
            "-- balances::add
             INSERT INTO account_balances (name, partition, account_id, balance)
             SELECT $1, $2, id, sum(amount) FROM unnest($3::bigint[], $4::bigint[]) AS credit (id, amount) GROUP BY id
             ON CONFLICT (name, partition, account_id) DO UPDATE SET balance = account_balances.balance + excluded.balance",
        );
        vec![adding.with(key.name.clone()).with(key.partition).with(account_ids).with(amounts)]
    }
}
