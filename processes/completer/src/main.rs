//! The completer process.

fn main() -> std::process::ExitCode {
    process::main(|config| &config.process, completer::run)
}
