//! The consumers with the fold `distance`: each state must be the sum of the records up to its checkpoint.
//!
//! The audit counts from the baseline's state, or from the first record if the history has the reaped ones.

mod ledger;
mod letters;
mod rides;
mod staged;

use anyhow::{Context, Result};
use consumer::{DistanceFold, Fold, State, StateFold};
use deadpool_postgres::Transaction;
use pglog::{Partition, PartitionCount, Record};

use super::Origin;
use super::archive::{Archive, range};
use super::extent::Extent;
use super::registered::Registered;
use super::report::{ConsumerLine, Report};
use ledger::{Audited, Ledger};
use letters::Letters;

pub(super) use rides::{Logged, compare_rides};

/// The comparison of these consumers, and its result so far.
pub(super) struct Distance {
    partition: Partition,
    extent: Extent,
    /// The offset that the audit counts from. `None`: the state there is not known, and no consumer is compared.
    base_offset: Option<i64>,
    letters: Letters,
    ledger: Ledger,
}

impl Distance {
    /// Whether the state of this consumer is a distance, of the version that the audit knows.
    pub fn is_of(consumer: &Registered) -> bool {
        consumer.has_fold(DistanceFold::ID)
    }

    /// Begins with the state that the audit counts from.
    pub async fn open(
        tx: &Transaction<'_>,
        partition: Partition,
        extent: Extent,
        (origin, archive): (Origin, &Archive),
        consumers: &[Registered],
        report: &mut Report,
    ) -> Result<Self> {
        let base = base(consumers, partition, extent, (origin, archive), report);
        let mut audited = Vec::new();
        for consumer in consumers.iter().filter(|consumer| Self::is_of(consumer)) {
            let (name, line) = (&consumer.name, consumer.line(partition));
            match state(consumer) {
                Ok(state) => {
                    let behind = base.filter(|(offset, _)| consumer.last_offset < *offset);
                    if let Some((offset, _)) = behind {
                        report.note(format!(
                            "{name}: replaying, not compared: it is at offset {}, and the baseline at {offset}",
                            consumer.last_offset
                        ));
                    }
                    let line = ConsumerLine { is_replaying: behind.is_some(), ..line };
                    audited.push(Audited::new(line, consumer.is_baseline, state));
                }
                Err(error) => {
                    report.differ(format!("{name}: {error:#}"));
                    report.consumers.push(ConsumerLine { is_equal: Some(false), ..line });
                }
            }
        }
        let (base_offset, base_state) = base.unzip();
        let ledger = Ledger::new(base_offset.unwrap_or_default(), base_state.unwrap_or_default(), audited);
        let letters = Letters::open(tx, partition).await?;
        let mut distance = Self { partition, extent, base_offset, letters, ledger };
        if let Some(base_offset) = base_offset {
            while let Some(at_offset) = distance.letters.next_up_to(tx, base_offset).await? {
                distance.ledger.letters_in_baseline(&at_offset, report);
            }
            distance.ledger.begin();
        }
        Ok(distance)
    }

    /// The offset of the first record that is needed.
    pub fn first_offset(&self) -> i64 {
        let first_retained = self.extent.first_retained;
        self.base_offset.map_or(first_retained, |base_offset| first_retained.min(base_offset + 1))
    }

    /// Takes the next records, which are consecutive.
    pub async fn take(&mut self, tx: &Transaction<'_>, records: &[Record<'_>], report: &mut Report) -> Result<()> {
        let Some(base_offset) = self.base_offset else { return Ok(()) };
        for record in records.iter().filter(|record| record.offset > base_offset) {
            let at_offset = self.letters.next_up_to(tx, record.offset).await?.unwrap_or_default();
            self.ledger.record(record, &at_offset, report);
        }
        Ok(())
    }

    /// Compares the consumers. `is_complete`: all records up to the head were taken. Returns the rides of all records, staged
    /// ones included, if they are known; and the number of staged records.
    pub async fn finish(
        mut self,
        tx: &Transaction<'_>,
        is_complete: bool,
        count: PartitionCount,
        report: &mut Report,
    ) -> Result<(Option<Logged>, i64)> {
        let is_complete = is_complete && self.base_offset.is_some();
        while is_complete && let Some(at_offset) = self.letters.next_up_to(tx, i64::MAX).await? {
            self.ledger.letters_beyond_head(&at_offset, report);
        }
        let (ride_count, total_distance_mm) = self.ledger.log();
        self.ledger.compare(&count.argument_for(self.partition), report);
        let (staged, staged_count) = staged::staged(tx, self.partition).await?;
        let logged = is_complete.then_some(Logged {
            ride_count: ride_count + staged.ride_count,
            total_distance_mm: total_distance_mm + i128::from(staged.total_distance_mm),
            is_whole: self.extent.first_retained == 1,
        });
        Ok((logged, staged_count))
    }
}

/// Offset and state to count from. `None` if the state is wrong or lacks deleted records: that is reported.
fn base(
    consumers: &[Registered],
    partition: Partition,
    extent: Extent,
    (origin, archive): (Origin, &Archive),
    report: &mut Report,
) -> Option<(i64, DistanceFold)> {
    let last_reaped = extent.first_retained - 1;
    if origin == Origin::Start {
        let Some((first, last)) = archive.lacks_any(1, last_reaped) else { return Some((0, DistanceFold::default())) };
        report.differ(format!(
            "log, partition {partition}: it cannot be counted from the start: neither the log nor the history has {}. It is \
             counted from the baseline",
            range(first, last)
        ));
    }
    let baseline = consumers.iter().find(|consumer| consumer.is_baseline && Distance::is_of(consumer));
    let Some(Registered { name, last_offset, .. }) = baseline else {
        if last_reaped == 0 {
            return Some((0, DistanceFold::default()));
        }
        report.differ(format!(
            "log, partition {partition}: the records before {} are reaped, and no baseline has the fold {}: no such \
             consumer can be compared (see --from start)",
            extent.first_retained,
            DistanceFold::ID
        ));
        return None;
    };
    if *last_offset > extent.head {
        report.differ(format!(
            "{name}: it is at offset {last_offset}, and the head of partition {partition} is {}",
            extent.head
        ));
    } else if let Some((first, last)) = archive.lacks_any(last_offset + 1, last_reaped) {
        report.differ(format!(
            "{name}: it is at offset {last_offset} of partition {partition}, and neither the log nor the history has {}: no \
             consumer can be compared",
            range(first, last)
        ));
    } else {
        // A state that cannot be read is reported with the other consumers.
        return baseline.and_then(|baseline| state(baseline).ok()).map(|state| (*last_offset, state));
    }
    None
}

fn state(consumer: &Registered) -> Result<DistanceFold> {
    let mut fold = State::<DistanceFold>::default();
    fold.restore(consumer.state.as_deref()).context("its state cannot be read")?;
    Ok(fold.0)
}
