//! What the processes must agree on or the pipeline breaks, and what each `main` does the same way. Nothing else:
//! no SQL on tables, no HTTP, no word of rides.

pub mod backoff;
pub mod config;
pub mod fault;
pub mod notify;
#[cfg_attr(not(feature = "otlp"), path = "otlp_off.rs")]
mod otlp;
pub mod postgres;
pub mod redis;
pub mod resp;
pub mod shutdown;
pub mod spans;
pub mod stream;
pub mod stream_end;
pub mod telemetry;
pub mod tls;
pub mod trace;
pub mod wire;
