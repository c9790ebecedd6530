//! The agreements between processes without which the pipeline breaks, and code that is too small for a library of its own.
//!
//! The crate depends on no other member of the workspace. Code moves here when a second crate needs it, and each file begins
//! with its users.

pub mod backoff;
pub mod fault;
pub mod paced;
pub mod shutdown;
pub mod stay_down;
pub mod tasks;
