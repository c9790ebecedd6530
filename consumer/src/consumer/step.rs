//! One step: it reads pages of the streams and commits them, and looks into Postgres when that is due.

use std::time::{Duration, Instant};

use anyhow::Result;
use common::shutdown::CancellationToken;

use super::clock::Clock;
use super::commit::Committer;
use super::guard::Guard;
use super::part::{Part, fold_of};
use super::session::ConsumerSession;
use crate::advice::Whose;
use crate::fault::Fault;
use crate::kind::Fold;
use crate::outcome::Progress;
use crate::stream_reader::{Heard, StreamReader};

/// What a step works with. Connection and states are certain while it lasts.
pub(super) struct Step<'a, F> {
    pub committers: Committers<'a, F>,
    pub reader: &'a mut StreamReader,
    pub clock: &'a mut Clock,
    /// How long to wait for entries; `None`: not at all.
    pub block: Option<Duration>,
}

/// The half of a step that works on Postgres.
pub(super) struct Committers<'a, F> {
    /// The consumer.
    pub whose: &'a Whose,
    pub guard: Guard,
    pub parts: &'a mut [Part],
    pub folds: &'a mut [F],
    pub session: &'a mut ConsumerSession,
    pub crash_count: &'a mut i64,
    /// Injected into the step's first commit.
    pub fault: Fault,
}

/// Which partitions a look heals.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Heal {
    /// All that are behind: the streams have just said that they have nothing.
    All,
    /// Those whose stream cannot be read, or has been silent since the last look although there were records then.
    Silent,
}

impl<F: Fold> Step<'_, F> {
    /// Waits for pages and commits them. If the streams have nothing to offer, the records that Postgres has beyond the checkpoints
    /// are read from there.
    ///
    /// # Errors
    /// Postgres is away, or an [`Interruption`](crate::Interruption).
    pub async fn run(&mut self, shutdown: &CancellationToken) -> Result<()> {
        let heard = self.read(shutdown).await?;
        if !shutdown.is_cancelled() {
            self.fold(&heard).await?;
        }
        let is_idle = shutdown.is_cancelled() || self.committers.progress().record_count() == 0;
        self.committers.tell_log(self.clock, is_idle).await
    }

    async fn fold(&mut self, heard: &[Heard]) -> Result<()> {
        // One stream that was waited for, or all of them at the end of a drain, has said that there is nothing.
        let is_silent = heard.iter().all(Heard::is_nil);
        let was_asked = self.block.is_none() || self.committers.parts.len() == 1 && !heard.is_empty();
        self.fold_pages(heard).await?;
        let progress = self.committers.progress();
        // A stream that offers nothing but foreign entries must not keep the others from being looked at.
        let is_idle_drain = self.block.is_none() && progress.record_count() + progress.duplicate_count == 0;
        if was_asked && is_silent || is_idle_drain {
            self.look(Heal::All).await
        } else if self.look_at().is_some_and(|due_at| due_at <= Instant::now()) {
            self.look(Heal::Silent).await
        } else {
            Ok(())
        }
    }

    /// When the next look is due.
    pub fn look_at(&mut self) -> Option<Instant> {
        self.clock.due_at(self.committers.parts.len(), self.reader.is_readable())
    }
}

impl<F: Fold> Committers<'_, F> {
    /// The work of all partitions.
    pub fn progress(&self) -> Progress {
        let mut sum = Progress::default();
        self.parts.iter().for_each(|part| sum.add(&part.progress));
        sum.blocked &= sum.record_count() == 0;
        sum
    }

    /// That of one part.
    pub fn of(&mut self, index: usize) -> Committer<'_, F> {
        let fold = fold_of(index, self.folds.len());
        let Part { key, label, loaded, counts, rejected_to, progress, .. } = &mut self.parts[index];
        Committer {
            key,
            label: *label,
            guard: self.guard,
            fold: &mut self.folds[fold],
            session: self.session,
            loaded: loaded.as_mut().expect("every part is loaded before a step begins"),
            counts,
            crash_count: self.crash_count,
            rejected_to,
            fault: &mut self.fault,
            progress,
        }
    }
}
