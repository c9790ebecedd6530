//! The reaper process.

fn main() -> std::process::ExitCode {
    process::main(|config| &config.process, reaper::run)
}
