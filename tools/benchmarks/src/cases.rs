//! The cases, one per file. Each measures limit and subject in turns and returns its rows.

pub(crate) mod api;
pub(crate) mod booked;
pub(crate) mod consumer;
pub(crate) mod container;
pub(crate) mod deep;
pub(crate) mod held;
pub(crate) mod history;
pub(crate) mod hour;
pub(crate) mod idle;
pub(crate) mod latency;
pub(crate) mod overload;
pub(crate) mod partitions;
pub(crate) mod pipeline;
pub(crate) mod streamer;
pub(crate) mod wallets;
