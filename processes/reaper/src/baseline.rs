//! The baseline: the folded state of all reaped records. It is a consumer that reads from Postgres only. The reaper moves it
//! just before it deletes records.

use anyhow::Result;
use common::shutdown::CancellationToken;
use consumer::{Consumer, FOLDS, Fold, Interruption};

use crate::config::Config;

/// Connects at the first fold, because there is seldom anything to fold.
pub(crate) struct Baseline(Consumer<Box<dyn Fold>>);

impl Baseline {
    pub fn new(config: &Config, shutdown: &CancellationToken) -> Self {
        Self(Consumer::baseline(&config.postgres, &config.stream, FOLDS.first(), shutdown.clone()))
    }

    /// Folds up to `last_offset` in bounded steps, and commits each step. Stops early at `shutdown`, and if a consumer has
    /// registered that has not come as far: then less is reaped.
    pub async fn move_to(&mut self, last_offset: i64, shutdown: &CancellationToken) -> Result<()> {
        while !shutdown.is_cancelled() {
            match self.0.fold_up_to(last_offset).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => match error.downcast_ref() {
                    // A second reaper has moved the baseline, or one of its dead letters was replayed: go on from there.
                    Some(Interruption::Fenced) => {}
                    Some(Interruption::HeldBack) => break,
                    Some(Interruption::OtherFold(_)) => {
                        return Err(error.context(
                            "the baseline has another fold than this reaper, and nothing is reaped: as the owner of the tables, \
                             run `DELETE FROM checkpoints WHERE is_baseline`. The reaper then makes a new baseline, from a \
                             consumer with its fold or from the history",
                        ));
                    }
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }
}
