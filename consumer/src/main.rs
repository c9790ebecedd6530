//! The consumer process, with the folds of this project.

fn main() -> std::process::ExitCode {
    process::main(|config: &consumer::OwnConfig| &config.consumer.process, consumer::run_own)
}
