//! The library against real servers, which `bin/test` starts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod support;

mod layer;
mod layer_refusals;
mod layer_safety;
mod manager;
mod phases;
mod results;
mod stores;
mod sweeps;
