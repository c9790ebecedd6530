//! The benchmarks program: configuration, signals, and then [`benchmarks::run`].

use std::process::ExitCode;

use benchmarks::{Cli, Command};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli: Cli = process::parse();
    let outcome = async {
        let shutdown = process::on_signal()?;
        match cli.command {
            Some(Command::TimedConsumer(config)) => benchmarks::timed_consumer(config, shutdown).await.map(|()| true),
            None => benchmarks::run(cli.config, shutdown).await,
        }
    };
    process::logs::conclude_verdict(outcome.await)
}
