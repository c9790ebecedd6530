//! The dashboard process.

fn main() -> std::process::ExitCode {
    process::main(|config| &config.process, dashboard::run)
}
