//! Operations that a client may ask for any number of times, and that are done once.
//!
//! An operation is known by what it does and for whom (its target) and by the key that the client made up for it. Its row
//! in `tracked_operations` says how far it has come. Whoever wants to work on it claims it, with one statement; of many
//! who try, one succeeds, and the others are told that it is running, or get the result. The claim carries a fencing
//! token: who is overtaken, because its time ran out, can change nothing any more.
//!
//! An operation with effects outside of Postgres goes in phases. A phase is one transaction that does some of the work and
//! moves the recovery point; between two phases lies at most one call to somebody else. A crash loses at most the phase in
//! hand, and the next claim goes on at the recovery point.
//!
//! ```text
//! (none) --claim--> running --finish--> finished: the result is kept, and replayed
//!                   running --fail----> failed:   may be claimed again, goes on at its recovery point
//!                   running, time is up: may be claimed again; the old claim is fenced
//! ```
//!
//! [`Runner::call`] goes through this for work of one step; [`Runner::call_in_phase`] for work whose effects are all in
//! Postgres, and then they are kept with the result or not at all; [`Runner::call_in_phases`] for work of several
//! [`Phases`]. Operations are kept in Postgres ([`PostgresStore`]), in Redis ([`RedisStore`]), or in Postgres with their
//! results in Redis ([`ResultsInRedis`]).
//!
//! # Around one's own axum service
//!
//! ```
//! use std::time::Duration;
//!
//! use axum::Router;
//! use axum::routing::post;
//! use idempotency::{IdempotencyLayer, PostgresStore, Settings, value};
//!
//! fn router(pool: deadpool_postgres::Pool) -> Router {
//!     // The same key of two users must not be the same operation.
//!     let settings = Settings::default().target(|parts| {
//!         let user = parts.headers.get("authorization").and_then(|user| user.to_str().ok()).unwrap_or("nobody");
//!         Ok(format!("[{}]{} for {user}", parts.method, parts.uri.path()))
//!     });
//!     let layer = IdempotencyLayer::new(PostgresStore::new(pool)).with(settings);
//!     // Over what all share, each route may have its own.
//!     let quick = layer.clone().with(Settings::default().timeout(value(Some(Duration::from_secs(10)))));
//!     Router::new()
//!         .route("/rides", post(async || "a ride").layer(layer.require_key()))
//!         .route("/tips", post(async |tip: String| tip).layer(quick))
//! }
//! ```

mod kept_response;
mod claim;
mod codec;
mod error;
mod go_duration;
mod headers;
mod layer;
mod link;
mod phase;
mod postgres_store;
mod redis_store;
mod operation;
mod results_in_redis;
mod runner;
mod settings;
mod store;
mod sweep;

pub use claim::{Claim, Claimed, Status, Tracked, claim, fail, find, finish};
pub use codec::{decode, encode};
pub use error::Error;
pub use go_duration::parse_go_duration;
pub use headers::unquoted;
pub use layer::{IdempotencyKey, IdempotencyLayer, IdempotencyService};
pub use phase::{Phase, Phases, Progress};
pub use postgres_store::PostgresStore;
pub use redis_store::RedisStore;
pub use operation::Request;
pub use results_in_redis::ResultsInRedis;
pub use runner::{Outcome, Runner};
pub use settings::{Invalid, Settings, value};
pub use store::Store;
pub use sweep::{delete_expired, fail_expired, fail_timed_out};

/// Where every operation begins.
pub const STARTED: &str = "started";

/// Where every operation ends.
pub const FINISHED: &str = "finished";

/// The error message of an operation that took too long.
const EXPIRED: &str = "Operation expired";

/// The error message of an operation whose claim ran out.
const TIMED_OUT: &str = "Operation timed out";
