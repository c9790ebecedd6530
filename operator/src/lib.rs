//! Tools for whoever runs the log. Each is a binary; none is needed while all is well.

pub mod audit;
pub mod dead_letters;
