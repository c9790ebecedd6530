//! The log's copy in Redis: the format of a stream entry, and a client that reads and writes whole pages of entries.

pub mod args;
pub mod codec;
pub mod end;
pub mod redis;
pub mod resp;
pub mod wire;

pub use args::StreamArgs;
