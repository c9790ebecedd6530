//! The streamer process: configuration, logs, signals, and then [`streamer::run`].

use anyhow::Result;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let config: streamer::Config = common::config::parse();
    common::telemetry::start();
    let shutdown = common::shutdown::on_signal()?;
    streamer::run(config, shutdown).await
}
