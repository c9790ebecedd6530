//! Tools for the operator of the log. Each is a binary that runs once, prints what it found or did, and exits. Normal
//! operation needs none of them.

pub mod adopt;
pub mod audit;
pub mod dead_letters;
pub mod doctor;
mod plain;
mod receipts;
