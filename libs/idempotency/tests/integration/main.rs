//! The library against real servers, which `bin/test` starts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod support;

mod layer;
mod layer_refusals;
mod manager;
mod phases;
mod results;
mod stores;
mod sweeps;
