//! Why a receipt was not delivered.

use anyhow::Error;

/// Why a receipt was not delivered.
pub(crate) struct Refusal {
    /// Another attempt will fare no better.
    pub is_permanent: bool,
    pub error: Error,
}

impl Refusal {
    pub(crate) fn permanent(error: Error) -> Self {
        Self { is_permanent: true, error }
    }

    pub(crate) fn passing(error: Error) -> Self {
        Self { is_permanent: false, error }
    }
}
