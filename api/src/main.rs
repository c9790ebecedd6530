//! The api process: configuration, logs, signals, and then [`api::run`].

use std::num::NonZero;
use std::process::ExitCode;

use tokio::runtime::{Builder, Runtime};

fn main() -> ExitCode {
    let config: api::Config = common::config::parse();
    common::telemetry::start(&config.log);
    let serving = async { api::run(config, common::shutdown::on_signal()?).await };
    common::telemetry::conclude(runtime().map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(serving)))
}

/// Half of the processors are left to Postgres, which does as much for each request. On two processors, two threads
/// spent more on a request than one, most of it on waking each other.
fn runtime() -> std::io::Result<Runtime> {
    let processor_count = std::thread::available_parallelism().map_or(1, NonZero::get);
    Builder::new_multi_thread().worker_threads((processor_count / 2).max(1)).enable_all().build()
}
