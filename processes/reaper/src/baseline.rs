//! The baseline of a partition: the folded state of all its reaped records. It is a consumer that reads from Postgres only. The
//! reaper moves it just before it deletes records.

use std::time::Instant;

use anyhow::Result;
use common::shutdown::CancellationToken;
use consumer::{Consumer, FOLDS, Fold, Interruption};
use pglog::Partition;

use crate::config::Config;

/// Connects at the first fold, because there is seldom anything to fold.
pub(crate) struct Baseline {
    consumer: Consumer<Box<dyn Fold>>,
    partition: Partition,
}

impl Baseline {
    pub fn new(config: &Config, partition: Partition, shutdown: &CancellationToken) -> Self {
        let consumer = Consumer::baseline(&config.postgres, partition, FOLDS.first(), shutdown.clone());
        Self { consumer, partition }
    }

    /// Folds up to `last_offset` in bounded steps, and commits each step. Stops early at `shutdown`, at the time `until`, and if
    /// a consumer has registered that has not come as far: then less is reaped.
    pub async fn move_to(&mut self, last_offset: i64, until: Instant, shutdown: &CancellationToken) -> Result<()> {
        while !shutdown.is_cancelled() && Instant::now() < until {
            match self.consumer.fold_up_to(last_offset).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => match error.downcast_ref() {
                    // A second reaper has moved the baseline, or one of its dead letters was replayed: go on from there.
                    Some(Interruption::Fenced) => {}
                    Some(Interruption::HeldBack) => break,
                    Some(Interruption::OtherFold(_)) => {
                        return Err(error.context(format!(
                            "the baseline has another fold than this reaper, and nothing is reaped. See that the history has \
                             every record (doctor), or that a consumer with this fold is registered. Then run, as the owner of \
                             the tables, `DELETE FROM checkpoints WHERE is_baseline AND partition = {}`. The reaper makes a new \
                             baseline from the consumer or from the history",
                            self.partition
                        )));
                    }
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }
}
