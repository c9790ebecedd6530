//! The api process.

fn main() -> std::process::ExitCode {
    process::main_on(api::runtime(), |config| &config.process, api::run)
}
