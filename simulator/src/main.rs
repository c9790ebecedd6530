//! The simulator process.

fn main() -> std::process::ExitCode {
    process::main(|config| &config.process, simulator::run_and_print)
}
