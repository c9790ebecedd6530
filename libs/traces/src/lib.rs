//! The trace that a request belongs to, and the spans that processes add to it.
//!
//! A trace is for people: nothing in the pipeline is decided by it.

mod batch_span;
#[cfg_attr(not(feature = "otlp"), path = "otlp_off.rs")]
mod otlp;
pub mod spans;
mod trace_parent;

pub use otlp::{flush, start};
pub use trace_parent::TraceParent;
