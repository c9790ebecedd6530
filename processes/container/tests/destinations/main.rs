//! The destinations on real folders, on a real Redis, and against a real receiver of notices.

// A test fails by a panic, so it may use unwrap.
#![allow(clippy::unwrap_used)]

mod address;
mod board;
mod contract;
mod files;
mod notices;
mod rebuild;
mod webhook;
mod world;
mod zombies;
