//! The consumer process: configuration, logs, signals, and then [`consumer::run`] with the distance fold.

use anyhow::Result;
use consumer::DistanceFold;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let config: consumer::Config = common::config::parse();
    common::telemetry::start();
    let shutdown = common::shutdown::on_signal()?;
    consumer::run(config, DistanceFold::default(), shutdown).await
}
