//! The consumer process, with the distance fold.

fn main() -> std::process::ExitCode {
    process::main(|config| &config.process, consumer::run_distance)
}
