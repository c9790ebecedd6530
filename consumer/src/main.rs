//! The consumer process, with the folds of this project.

fn main() -> std::process::ExitCode {
    process::main(|config| &config.process, consumer::run_own)
}
