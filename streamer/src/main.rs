//! The streamer process.

fn main() -> std::process::ExitCode {
    process::main(|config| &config.process, streamer::run)
}
