//! The manual program: configuration, and then [`manual::write`].

use std::process::ExitCode;

fn main() -> ExitCode {
    let config: manual::Config = process::parse();
    match manual::write(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
