//! The baseline: the state of everything that is reaped. A consumer like any other, which reads from Postgres only and is
//! moved by the reaper, just before records go.

use anyhow::Result;
use common::shutdown::CancellationToken;
use consumer::{Consumer, DistanceFold, Interruption};

use crate::Config;

/// Connects when there is something to fold, which is seldom.
pub(crate) struct Baseline(Consumer<DistanceFold>);

impl Baseline {
    pub fn new(config: &Config, shutdown: &CancellationToken) -> Self {
        Self(Consumer::baseline(&config.postgres, &config.stream, DistanceFold::default(), shutdown.clone()))
    }

    /// Folds up to `last_offset`, in bounded steps, each of which is committed. Stops before that when told to, or when a
    /// consumer has registered that is not as far: then less is reaped.
    pub async fn move_to(&mut self, last_offset: i64, shutdown: &CancellationToken) -> Result<()> {
        while !shutdown.is_cancelled() {
            match self.0.fold_up_to(last_offset).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => match error.downcast_ref() {
                    // Another reaper has moved it, or one of its dead letters was replayed: go on from there.
                    Some(Interruption::Fenced) => {}
                    Some(Interruption::HeldBack) => break,
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }
}
