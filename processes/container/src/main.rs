//! The container process.

fn main() -> std::process::ExitCode {
    process::main(container::Config::process, container::run)
}
