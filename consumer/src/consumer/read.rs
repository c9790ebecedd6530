//! Reading pages of the streams (I4, I6).

use std::pin::pin;

use anyhow::{Context, Error, Result};
use common::shutdown::CancellationToken;
use stream::codec::{Entry, EntryId, decode_xreads};
use tracing::{debug, warn};

use super::part::Part;
use super::step::{Committers, Step};
use crate::kind::Fold;
use crate::stream_reader::Heard;

/// Entries of one stream that follow each other.
pub(super) struct Page<'a> {
    /// The index of the part.
    pub part: usize,
    /// The index of the tail that has read them.
    pub tail: usize,
    /// At least one.
    pub entries: Vec<Entry<'a>>,
    pub last_id: EntryId,
}

impl<F: Fold> Step<'_, F> {
    /// Waits for pages. Meanwhile the fold looks after its model, and finishes the unit that it is at when a page arrives.
    ///
    /// # Errors
    /// The model cannot be looked after. If a stream cannot be read, [`fold_pages`](Self::fold_pages) takes the error.
    pub async fn read(&mut self, shutdown: &CancellationToken) -> Result<Vec<Heard>> {
        let until = self.look_at();
        let Self { committers: Committers { folds, session, parts, .. }, reader, block, .. } = self;
        let places: Vec<_> = parts.iter().map(Part::place).collect();
        let positions = positions(parts);
        let mut reading = pin!(reader.pages(&positions, *block, until, shutdown));
        let mut pages = None;
        loop {
            // A model has one fold for all partitions.
            let mut tending = pin!(folds[0].tend(&session.client, &places));
            let pause = loop {
                tokio::select! {
                    biased;
                    heard = &mut reading, if pages.is_none() => pages = Some(heard),
                    pause = &mut tending => break pause.context("looking after the model")?,
                }
            };
            parts[0].progress.is_tending = pause.is_zero();
            if let Some(pages) = pages {
                return Ok(pages);
            }
            tokio::select! {
                biased;
                pages = &mut reading => return Ok(pages),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Folds pages and commits them.
    ///
    /// # Errors
    /// Postgres is away, or an [`Interruption`](crate::Interruption).
    pub async fn fold_pages(&mut self, heard: &[Heard]) -> Result<()> {
        let mut pages = Vec::new();
        for Heard { tail, page } in heard {
            let decoded = match page {
                Ok(page) => decode_xreads(page).map_err(Error::from),
                Err(error) => {
                    self.do_without(*tail, error);
                    continue;
                }
            };
            match decoded {
                Ok(streams) => {
                    self.reader.note_success(*tail);
                    for (key, entries) in streams {
                        let part =
                            self.reader.stream_of(*tail, key).context("redis names a stream that was not asked for")?;
                        if let Some(last) = entries.last() {
                            self.committers.parts[part].is_offered = true;
                            pages.push(Page { part, tail: *tail, last_id: last.id, entries });
                        }
                    }
                }
                Err(error) => self.do_without(*tail, &error),
            }
        }
        // The order in which rows are locked.
        pages.sort_unstable_by_key(|page| page.part);
        self.fold_entries(&pages).await
    }

    /// A tail cannot be read. Postgres is asked for the records of its partitions until it can.
    fn do_without(&mut self, tail: usize, error: &Error) {
        let (consumer, wait) = (&self.committers.whose.name, self.reader.note_failure(tail, error));
        let parts = &self.committers.parts[self.reader.streams_of(tail)];
        // The partition is told if the connection was for this one alone.
        let partition = if let [part] = parts { part.label } else { None };
        let error = format!("{error:#}");
        let Some(wait) = wait else {
            debug!(consumer, partition, error, "another node has the stream now");
            return;
        };
        self.clock.hurry();
        warn!(
            consumer,
            partition,
            error,
            wait_ms = wait.as_millis() as u64,
            "the stream cannot be read, reading on from Postgres"
        );
    }
}

/// Where reading goes on, in each stream.
pub(super) fn positions(parts: &[Part]) -> Vec<EntryId> {
    parts.iter().map(|part| part.loaded().position).collect()
}
