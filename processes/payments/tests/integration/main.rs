//! The server and the client over real sockets, and the real process where it has to die.

// A test fails by panicking: unwrap is its way to say that something is not as it must be.
#![allow(clippy::unwrap_used)]

mod client;
mod faults;
mod process;
mod server;
mod world;
