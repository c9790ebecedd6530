//! The cases, one a file: each measures limit and subject in turns and returns its rows.

pub(crate) mod api;
pub(crate) mod consumer;
pub(crate) mod overload;
pub(crate) mod streamer;
