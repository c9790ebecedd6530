//! The receipts process.

fn main() -> std::process::ExitCode {
    process::main(|config: &receipts::Config| &config.consumer.process, receipts::run)
}
