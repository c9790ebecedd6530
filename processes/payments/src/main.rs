//! The payments process.

fn main() -> std::process::ExitCode {
    process::main(|config| &config.process, payments::run)
}
