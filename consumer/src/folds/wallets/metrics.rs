//! The metrics of the wallets' read model.

use monitor::{counter, declare_counter, declare_gauge, gauge};

const EPOCHS: &str = "rocket_rides_wallet_epochs_total";
const MENDED: &str = "rocket_rides_wallet_documents_mended_total";
const BUILDING: &str = "rocket_rides_wallet_model_building";
const COMPARED: &str = "rocket_rides_wallet_round_wallets";

/// Describes the metrics.
pub(super) fn declare() {
    declare_counter(EPOCHS, "Times that all documents were given up and the model was built anew", &[]);
    declare_counter(MENDED, "Documents that the scrubber found missing or outdated, and wrote", &[]);
    declare_gauge(BUILDING, "1 while every wallet is compared at full speed, as after the start, else 0", &[]);
    declare_gauge(COMPARED, "Wallets that the scrubber has compared in this round", &[]);
}

/// A new epoch has begun.
pub(super) fn count_epoch() {
    counter!(EPOCHS).increment(1);
}

/// How far the scrubber is.
pub(super) fn set_round(is_fast: bool, compared_count: u64) {
    gauge!(BUILDING).set(f64::from(u8::from(is_fast)));
    gauge!(COMPARED).set(compared_count as f64);
}

/// The scrubber has written documents.
pub(super) fn count_mended(count: u64) {
    counter!(MENDED).increment(count);
}
