//! **Start here.** Rocket Rides Log is a log-based event pipeline. A change is written once, and every state that is derived from
//! it ends up the same, although processes crash, batches are sent twice, and Redis forgets.
//!
//! ```text
//!  client ──HTTP──▶ api ──one transaction──▶ Postgres: rides + staged_log_records
//!                                                │
//!                               streamer: fixes the order once, then XADD <offset>-<copy>
//!                                                ▼
//!                                  Redis Stream  (a copy of the log: may be lost at any time)
//!                                    │           │           │
//!                               consumer0   consumer1    history …    fold; result + checkpoint in one transaction
//! ```
//!
//! # The two rules
//!
//! - **Write rule.** A change and its log record commit in one Postgres transaction, or neither does: [`pglog::stage`].
//! - **Read rule.** A derived state and the checkpoint it was derived up to commit in one Postgres transaction, or neither
//!   does: [`consumer::StateFold`] and [`consumer::RowFold`].
//!
//! Delivery is at least once. Effects happen once, because a state and its checkpoint move together. The stream only makes the
//! pipeline fast: Redis may lose it at any time.
//!
//! # A change, and the record of it
//!
//! Stage the record in the transaction of your own change, as its last statement. A hint after the commit wakes the streamer at
//! once; without it the streamer finds the record within a tenth of a second:
//!
//! ```no_run
//! # async fn credit(client: &mut tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
//! let tx = client.transaction().await?;
//! tx.execute("UPDATE accounts SET balance = balance + 5 WHERE id = 7", &[]).await?;
//! let data = r#"{"id":7,"amount":5}"#;
//! pglog::stage(&tx, pglog::NewRecord { key: "account-7", object: "account", action: "credit", data, traceparent: None }).await?;
//! tx.commit().await?;
//! pglog::hint(client).await
//! # }
//! ```
//!
//! # An entry of the stream
//!
//! A record gets its *offset* once: 1, 2, 3, … . In the stream the offset is the first part of the entry's id, and the second part
//! says which copy of the record this is. A consumer that has folded up to an offset recognises every duplicate by its id:
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
//! A consumer reads a missing offset from Postgres, which has every record until all consumers have passed it.
//!
//! # A fold
//!
//! A [`consumer::StateFold`] derives one small state from records, and a [`consumer::RowFold`] derives rows. Both see records
//! and nothing else, so this example needs no server. [`consumer::DistanceFold`] adds up the distances of all rides in whole
//! millimetres, so that the total of every consumer is exactly SQL's own `SUM`:
//!
//! ```
//! use consumer::{DistanceFold, StateFold};
//!
//! let (partition, mut fold) = (pglog::Partition::FIRST, DistanceFold::default());
//! for (offset, data) in [(1, r#"{"id":7,"distance_mm":123000}"#), (2, r#"{"id":8,"distance_mm":1}"#)] {
//!     let record = pglog::Record { partition, offset, token: 0, object: "ride", action: "create", data, staged_at_us: 0, traceparent: None };
//!     fold.apply(&record).unwrap();
//! }
//! assert_eq!(fold.total_distance_mm, 123_001);
//! let bad = pglog::Record { partition, offset: 3, token: 0, object: "ride", action: "create", data: "{}", staged_at_us: 0, traceparent: None };
//! // This record can never apply: the loop stores it as a dead letter, and goes on.
//! assert!(fold.apply(&bad).is_err());
//! ```
//!
//! A program lists its folds in a [`consumer::Registry`], and `--fold` chooses one. The registration of a consumer stores the
//! fold's name and version, and no other fold goes on with it.
//!
//! # The history
//!
//! The reaper removes records that every consumer has passed. [`consumer::HistoryFold`] archives all of them before.
//! [`pglog::WholeReader`] reads retained and archived records as one log, so a new consumer can begin at offset 1. It tells a
//! hole in the archive, and never reads over it.
//!
//! # Crates
//!
//! Libraries, for use in a service of your own:
//!
//! | crate | holds |
//! | --- | --- |
//! | [`pglog`](../pglog/index.html) | the log in Postgres: stage, fix the order, read, reap, read what is archived. Example: `libs/pglog/examples/stage.rs` |
//! | [`consumer`](../consumer/index.html) | the loop around a fold: duplicates, gaps, checkpoints, dead letters. Example: `consumer/examples/balances.rs` |
//! | [`idempotency`](../idempotency/index.html) | requests that may be sent any number of times and take effect once. Example: `libs/idempotency/examples/hello.rs` |
//! | [`monitor`](../monitor/index.html) | `/metrics` and `/readyz` of a process |
//! | [`stream`](../stream/index.html) | the copy of the log in Redis: the format of an entry, and a client for whole pages of entries |
//! | [`process`](../process/index.html) | the skeleton of a process: arguments, logs, signals, and the loop around one unit of work |
//! | [`connect`](../connect/index.html) | connections to Postgres, and TLS |
//! | [`traces`](../traces/index.html) | W3C trace context, and spans |
//! | [`common`](../common/index.html) | back-off, injected faults, shutdown |
//! | [`web`](../web/index.html) | HTTP servers: a listener with limits and time-outs, error bodies, request ids, CORS, compression |
//! | [`group`](../group/index.html) | the group writer: requests that wait together are written by one transaction |
//! | [`lease`](../lease/index.html) | a leased piece of work: take it, do it with no transaction open, settle it |
//! | [`journal`](../journal/index.html) | a state that is kept in a file of JSON lines |
//! | [`booking`](../booking/index.html) | a ride, a charge and a receipt, phase by phase |
//!
//! Processes: each is a library with `run`, and a `main` of one line:
//!
//! | crate | does |
//! | --- | --- |
//! | [`api`](../api/index.html) | takes rides over HTTP |
//! | [`streamer`](../streamer/index.html) | fixes the order of the log, and appends it to the stream |
//! | [`consumer`](../consumer/index.html) | folds the log |
//! | [`receipts`](../receipts/index.html) | notes receipts of booked rides by a fold of its own, and delivers them |
//! | [`container`](../container/index.html) | stores each request in several destinations, or in none |
//! | [`completer`](../completer/index.html) | finishes bookings that clients have abandoned |
//! | [`reaper`](../reaper/index.html) | removes records that every consumer has passed |
//! | [`operator`](../operator/index.html) | `audit`, `doctor`, `dead-letters`, `adopt` |
//! | [`payments`](../payments/index.html) | a client of Stripe, and a server for development that answers like Stripe |
//! | [`simulator`](../simulator/index.html) | posts rides |
//! | [`dashboard`](../dashboard/index.html) | serves the live page |
//! | [`launcher`](../launcher/index.html) | runs all processes beside private servers: `bin/up`, `bin/test` |
//! | [`chaos`](../chaos/index.html) | injects faults from a seed, and checks that no record is lost |
//! | [`benchmarks`](../benchmarks/index.html) | measures the processes beside the limits of the machine |
//!
//! The program of this crate, `manual --into FOLDER`, writes man pages and completions of every binary, and the notices of
//! third parties: [`write()`].

mod notices;
mod pages;

pub use pages::{Config, write};
