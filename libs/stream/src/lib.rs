//! The log's copy in Redis: the format of a stream entry, and a client that reads and writes whole pages of entries.
//!
//! Postgres has the truth. Redis may lose any part of the copy at any time (I6).

pub mod args;
pub mod codec;
pub mod end;
pub mod placement;
pub mod redis;
pub mod refusal;
pub mod resp;
mod seeds;
pub mod servers;
pub mod wire;

pub use args::{StreamArgs, hash_tag};
pub use codec::Stream;
pub use servers::Servers;
