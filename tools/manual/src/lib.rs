//! **Start here.** Rocket Rides Log is a pipeline that loses nothing: a change is written once, and whatever is derived from
//! it ends up the same, though processes crash, batches are sent twice, and Redis forgets.
//!
//! ```text
//!  client ──HTTP──▶ api ──one transaction──▶ Postgres: rides + staged_log_records
//!                                                │
//!                               streamer: fixes the order once, then XADD <offset>-<copy>
//!                                                ▼
//!                                  Redis Stream  (a copy of the log: may be lost at any time)
//!                                    │           │           │
//!                               consumer0   consumer1   consumer2 …   fold; state + checkpoint in one transaction
//! ```
//!
//! # The two rules
//!
//! - **Write rule.** A change and its log record commit in one Postgres transaction, or neither does: [`pglog::stage`].
//! - **Read rule.** A derived state and the checkpoint it was derived up to commit in one Postgres transaction, or neither
//!   does: [`consumer::Fold`].
//!
//! Between them delivery is at least once. Effects happen once, because what was folded and how far move together. All the
//! rest, the stream too, is there to be fast, and may be lost.
//!
//! # A change, and the record of it
//!
//! Stage in the transaction of your own change, as its last statement. Afterwards wake the streamer, if you like:
//!
//! ```no_run
//! # async fn credit(client: &mut tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
//! let tx = client.transaction().await?;
//! tx.execute("UPDATE wallets SET balance = balance + 5 WHERE id = 7", &[]).await?;
//! let data = r#"{"id":7,"amount":5}"#;
//! pglog::stage(&tx, pglog::NewRecord { object: "wallet", action: "credit", data, traceparent: None }).await?;
//! tx.commit().await?;
//! pglog::hint(client).await
//! # }
//! ```
//!
//! # An entry of the stream
//!
//! The record gets its place once, its *offset*: 1, 2, 3, … . In the stream it is the first part of the entry's id, and the
//! second part says which copy of the record this is. So whoever has folded up to an offset knows a duplicate by its id,
//! whoever sent it, and however late:
//!
//! ```
//! use stream::codec::EntryId;
//!
//! let mut last_offset = 41;
//! let mut folded = Vec::new();
//! for id in ["41-0", "42-0", "42-1", "43-0", "42-2"] {
//!     let entry = EntryId::parse(id).unwrap();
//!     if entry.offset == last_offset + 1 {
//!         folded.push(id);
//!         last_offset = entry.offset;
//!     }
//! }
//! assert_eq!(folded, ["42-0", "43-0"]);
//! ```
//!
//! An offset that is missing is read from Postgres, which has every record until all consumers have passed it.
//!
//! # A fold
//!
//! What a consumer makes of the records is a [`consumer::Fold`]. The one that is here adds up how far everybody was carried,
//! in whole millimetres, so that every consumer's total is exactly SQL's own `SUM`:
//!
//! ```
//! use consumer::{DistanceFold, Fold};
//!
//! let mut fold = DistanceFold::default();
//! for (offset, data) in [(1, r#"{"id":7,"distance_mm":123000}"#), (2, r#"{"id":8,"distance_mm":1}"#)] {
//!     let record = pglog::Record { offset, token: 0, object: "ride", action: "create", data, staged_at_us: 0, traceparent: None };
//!     fold.apply(&record).unwrap();
//! }
//! assert_eq!(fold.total_distance_mm, 123_001);
//! let bad = pglog::Record { offset: 3, token: 0, object: "ride", action: "create", data: "{}", staged_at_us: 0, traceparent: None };
//! // It can never apply: the loop keeps it among the dead letters, and goes on.
//! assert!(fold.apply(&bad).is_err());
//! ```
//!
//! # What is where
//!
//! Libraries, to be used in a service of your own:
//!
//! | crate | holds |
//! | --- | --- |
//! | [`pglog`] | the log as Postgres holds it: stage, fix the order, read. Example: `libs/pglog/examples/stage.rs` |
//! | [`consumer`] | the loop around a fold: duplicates, gaps, checkpoints, dead letters. Example: `consumer/examples/balances.rs` |
//! | [`idempotency`] | requests that may be sent any number of times and are done once. Example: `libs/idempotency/examples/hello.rs` |
//! | [`monitor`] | `/metrics` and `/readyz` of a process |
//! | [`common`] | what processes must agree on: entries of the stream, flags, connections, shutdown |
//! | [`booking`] | a ride, a charge and a receipt, phase by phase |
//!
//! Processes; each is a library with `run`, and a thin `main`:
//!
//! | crate | does |
//! | --- | --- |
//! | [`api`] | takes rides over HTTP |
//! | [`streamer`] | carries the log from Postgres into the stream |
//! | [`consumer`] | folds it |
//! | [`receipts`] | delivers receipts of booked rides, as a second fold |
//! | [`completer`] | brings to their ends the bookings that clients have left |
//! | [`reaper`] | removes what everybody has passed |
//! | [`operator`] | `audit`, `doctor`, `dead-letters`, `adopt` |
//! | [`payments`] | the client of Stripe, and a server like it for development |
//! | [`simulator`] | posts rides |
//! | [`launcher`] | runs all of them, with servers of their own: `bin/up`, `bin/test` |
//! | [`chaos`] | breaks them from a seed, and checks that nothing is lost |
//! | [`benchmarks`] | measures them beside what the machine gives |
//!
//! This crate also has a program: `manual --into FOLDER` writes man pages and completions of every binary:
//! [`write()`].

mod pages;

pub use pages::{Config, commands, write};
