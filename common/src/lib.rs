//! What two processes must agree on or the pipeline breaks, and what is too small for a library of its own. It depends on
//! no other member of the workspace. Code moves here when a second crate needs it.

pub mod backoff;
pub mod fault;
pub mod shutdown;
