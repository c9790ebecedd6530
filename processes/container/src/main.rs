//! The container process.

fn main() -> std::process::ExitCode {
    process::main(|config: &container::Config| &config.process, container::run)
}
