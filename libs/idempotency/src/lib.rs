//! Operations that a client may ask for any number of times, and that are done once.
//!
//! An operation is identified by its target (the action and its user) and by a key that the client has chosen. Its row in
//! `tracked_operations` stores its progress. A process that wants to work on it claims it, with one statement. If many
//! processes try, one succeeds; the others learn that the operation is running, or receive its result. The claim carries a
//! fencing token: after its time has run out and a second process has claimed the operation, the first process can change
//! nothing.
//!
//! An operation with effects outside of Postgres goes in phases. A phase is one transaction that does some of the work and
//! moves the recovery point; between two phases lies at most one call to another server. A crash loses at most the current
//! phase, and the next claim goes on at the recovery point.
//!
//! ```text
//! (none) --claim--> running --finish--> finished: the result is stored, and replayed
//!                   running --fail----> failed:   may be claimed again, goes on at its recovery point
//!                   running, time is up: may be claimed again; the old claim is fenced
//! ```
//!
//! [`Runner::call`] does this for work of one step. [`Runner::call_in_phase`] is for work whose effects are all in Postgres:
//! the effects and the result are stored together, or neither. [`Runner::call_in_phases`] is for work of several [`Phases`].
//!
//! Operations are stored in Postgres ([`PostgresStore`]). The feature `redis` adds `RedisStore`, which stores them in Redis,
//! and `ResultsInRedis`, which stores operations in Postgres and their results in Redis. The feature `http` adds
//! `IdempotencyLayer`, a tower layer.
//!
//! # Around your own axum service
//!
//! With the feature `http`:
//!
//! ```
//! use std::time::Duration;
//!
//! use axum::Router;
//! use axum::routing::post;
//! use idempotency::{IdempotencyLayer, PostgresStore, Settings, value};
//!
//! #[derive(Clone)]
//! struct UserId(i64);
//!
//! fn router(pool: deadpool_postgres::Pool) -> Router {
//!     // Two users may choose the same key. Your own layer, around this one, has authenticated the user. Without a scope, a hash
//!     // of the header `Authorization` keeps users apart.
//!     let settings = Settings::default().scope(|parts| Ok(parts.extensions.get().map(|UserId(id)| id.to_string())));
//!     let layer = IdempotencyLayer::new(PostgresStore::new(pool)).with(settings);
//!     // A route may override the shared settings.
//!     let quick = layer.clone().with(Settings::default().timeout(value(Some(Duration::from_secs(10)))));
//!     Router::new()
//!         .route("/rides", post(async || "a ride").layer(layer.require_key()))
//!         .route("/tips", post(async |tip: String| tip).layer(quick))
//! }
//! ```

mod claim;
mod codec;
mod error;
mod key;
mod operation;
mod phase;
mod postgres_store;
mod runner;
mod store;
mod sweep;

#[cfg(feature = "http")]
mod go_duration;
#[cfg(feature = "http")]
mod headers;
#[cfg(feature = "http")]
mod kept_response;
#[cfg(feature = "http")]
mod layer;
#[cfg(feature = "http")]
mod settings;

#[cfg(feature = "redis")]
mod link;
#[cfg(feature = "redis")]
mod redis_store;
#[cfg(feature = "redis")]
mod results_in_redis;

pub use claim::{Claim, Claimed, Status, Tracked, claim, fail, find, finish};
pub use codec::{decode, encode};
pub use error::Error;
pub use key::unquoted;
pub use operation::{FINISHED, Operation, STARTED};
pub use phase::{Phase, PhaseEnd, Phases};
pub use postgres_store::PostgresStore;
pub use runner::{Outcome, Runner};
pub use store::Store;
pub use sweep::{delete_expired, fail_expired, fail_timed_out};

#[cfg(feature = "http")]
pub use go_duration::parse_go_duration;
#[cfg(feature = "http")]
pub use headers::Invalid;
#[cfg(feature = "http")]
pub use layer::{IdempotencyKey, IdempotencyLayer, IdempotencyService};
#[cfg(feature = "http")]
pub use settings::{Settings, value};

#[cfg(feature = "redis")]
pub use redis_store::RedisStore;
#[cfg(feature = "redis")]
pub use results_in_redis::ResultsInRedis;
