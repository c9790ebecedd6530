//! The server and the client over real sockets, and the real process for tests of its death.

// A test fails by a panic, so it may use unwrap.
#![allow(clippy::unwrap_used)]

mod client;
mod faults;
mod process;
mod server;
mod world;
