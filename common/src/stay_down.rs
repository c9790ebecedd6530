//! Users: connect, monitor, consumer, receipts, dashboard, and `libs/process`, which turns it into the exit status.

/// An error that no restart mends, because a person has to act first: two settings that exclude each other, for example. The
/// process exits with status 2, as after a bad setting, and supervisors do not start it again.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StayDown(#[from] pub anyhow::Error);
