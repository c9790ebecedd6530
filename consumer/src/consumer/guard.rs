//! A condition that must hold before a checkpoint moves.

use anyhow::Result;
use pglog::{Partition, Session};

use crate::bootstrap::Role;

/// The condition for a checkpoint to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    /// No condition: the checkpoint of a consumer moves freely.
    None,
    /// The baseline never passes a consumer, not even one that registers in this moment. New consumers start with the
    /// baseline's state, and audits count from it.
    BehindConsumers,
}

impl Guard {
    /// The condition for a consumer that plays this part.
    pub fn of(role: Role) -> Self {
        match role {
            Role::Consumer(_) | Role::Anew(_) => Self::None,
            Role::Baseline => Self::BehindConsumers,
        }
    }

    /// Whether the checkpoint may move to `new_offset` in this transaction. Until it ends, no consumer can register.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn permits(self, tx: &impl Session, partition: Partition, new_offset: i64) -> Result<bool> {
        match self {
            Self::None => Ok(true),
            Self::BehindConsumers => {
                pglog::hold_registration(tx).await?;
                let lowest = pglog::lowest_checkpoint(tx, partition).await?;
                Ok(lowest.is_some_and(|lowest| lowest >= new_offset))
            }
        }
    }
}
