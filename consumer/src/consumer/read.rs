//! One page of the stream: which of its entries are records of this log, and where reading goes on (I4, I6).
//!
//! A page is mostly just the next records; it is committed as a whole. Otherwise each entry is looked at: it may be a
//! duplicate, not of this log, or lie behind a gap.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Error, Result};
use bytes::Bytes;
use common::shutdown::CancellationToken;
use common::tasks::after_all_other_tasks;
use pglog::Record;
use stream::codec::{Entry, EntryId, Fields, decode_xread};
use tracing::{debug, warn};

use super::commit::{Committer, Source};
use crate::kind::{Fold, Kind};
use crate::outcome::Interruption;
use crate::stream_reader::StreamReader;
use crate::tail::PAGE_LEN_MAX;
use crate::vouch::Origin;

/// One step: it reads a page and commits it. Connection and state are certain while it lasts.
pub(super) struct Reading<'a, F> {
    pub committer: Committer<'a, F>,
    pub stream: &'a mut StreamReader,
    /// Entries up to here were counted when they were rejected. An entry that is not of this log is met again until the
    /// streamer sets the stream aside.
    pub rejected_to: &'a mut EntryId,
    /// How long to wait for entries; `None`: not at all.
    pub block: Option<Duration>,
}

impl<F: Fold> Reading<'_, F> {
    /// Waits for the next page. `None` while Redis is given time to come back, and when the shutdown begins. Meanwhile the fold
    /// looks after its model, and finishes the unit that it is at when the page arrives.
    ///
    /// # Errors
    /// The model cannot be looked after. If the stream cannot be read, [`fold_page`](Self::fold_page) takes the error.
    pub async fn read_page(&mut self, shutdown: &CancellationToken) -> Result<Result<Option<Bytes>>> {
        let place = self.committer.place();
        let Committer { fold, session, loaded, progress, .. } = &mut self.committer;
        let mut reading = pin!(self.stream.read(loaded.position, self.block, shutdown));
        let mut page = None;
        loop {
            let mut tending = pin!(fold.tend(&session.client, place));
            let pause = loop {
                tokio::select! {
                    biased;
                    read = &mut reading, if page.is_none() => page = Some(read),
                    pause = &mut tending => break pause.context("looking after the model")?,
                }
            };
            progress.is_tending = pause.is_zero();
            if let Some(page) = page {
                return Ok(page);
            }
            tokio::select! {
                biased;
                page = &mut reading => return Ok(page),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Folds the page and commits it. If the stream has nothing to offer, the records that Postgres has beyond the
    /// checkpoint are read from there.
    ///
    /// # Errors
    /// Postgres is away, or an [`Interruption`].
    pub async fn fold_page(&mut self, page: Result<Option<Bytes>>) -> Result<()> {
        let page = match page {
            Ok(Some(page)) => page,
            Ok(None) => return self.committer.catch_up().await,
            Err(error) => return self.do_without_stream(&error).await,
        };
        let entries = match decode_xread(&page) {
            Ok(entries) => entries,
            Err(error) => return self.do_without_stream(&error.into()).await,
        };
        self.stream.note_success();
        match entries.last() {
            Some(last) => self.fold_entries(&entries, last.id).await,
            None => self.committer.catch_up().await,
        }
    }

    async fn do_without_stream(&mut self, error: &Error) -> Result<()> {
        let wait = self.stream.note_failure();
        warn!(
            consumer = self.committer.key.name,
            error = format!("{error:#}"),
            wait_ms = wait.as_millis() as u64,
            "the stream cannot be read, reading on from Postgres"
        );
        self.committer.catch_up().await
    }

    async fn fold_entries(&mut self, entries: &[Entry<'_>], last_id: EntryId) -> Result<()> {
        // A model is changed before Postgres compares the tokens. So Postgres vouches for each entry first.
        let is_compared_later = self.committer.fold.kind() != Kind::Model;
        if let Some(records) = plain_records(entries, self.committer.loaded.last_offset() + 1)
            && is_compared_later
        {
            match self.fold_plain(&records, last_id).await {
                Err(error) if matches!(error.downcast_ref(), Some(Interruption::Unvouched)) => {
                    self.committer.reload().await?;
                }
                folded => return folded,
            }
        }
        self.fold_one_by_one(entries, last_id).await
    }

    /// Folds a page that is just the next records. Their tokens are compared by the statement that commits them.
    async fn fold_plain(&mut self, records: &[Record<'_>], last_id: EntryId) -> Result<()> {
        let (stream, block, len) = (&mut self.stream, self.block, records.len());
        let asking = async {
            // Redis gathers the next page while a full one is folded. A small page is folded at once: with this yield the
            // connection's task sends its commit first. A client waits for that commit, and none for the next page.
            if len < PAGE_LEN_MAX {
                after_all_other_tasks().await;
            }
            stream.read_ahead(last_id, len, block).await;
        };
        let committing = self.committer.commit(records, Source::Stream);
        let ((), committed) = tokio::join!(biased; asking, committing);
        committed?;
        self.committer.loaded.position = last_id;
        Ok(())
    }

    /// Looks at each entry: it may be a duplicate, not of this log, or lie behind a gap.
    async fn fold_one_by_one(&mut self, entries: &[Entry<'_>], last_id: EntryId) -> Result<()> {
        // Up to this offset the stream cannot tell the next records, and Postgres is asked.
        let mut unusable_to = 0;
        let mut is_page_used = true;
        let mut ready = Vec::with_capacity(entries.len());
        self.committer.look_up_tokens(last_id.offset).await?;
        for entry in entries {
            let offset = entry.id.offset;
            let next_offset = self.committer.loaded.last_offset() + ready.len() as i64 + 1;
            if offset < next_offset {
                self.skip_duplicate(entry.id);
                continue;
            }
            match (self.committer.origin(entry), &entry.fields) {
                // Very far ahead: it is cheaper to read the records in between than to look up their tokens.
                (Origin::NotKnownYet, _) => {
                    unusable_to = offset;
                    break;
                }
                (Origin::ThisLog, Ok(fields)) => {
                    if offset > next_offset {
                        self.committer.commit(&std::mem::take(&mut ready), Source::Stream).await?;
                        if !self.committer.heal(offset - 1).await? {
                            is_page_used = false;
                            break;
                        }
                    }
                    ready.push(record(offset, fields));
                }
                // It has the id of a record of this log, and Redis refuses the true entry because of it.
                (Origin::Foreign, _) | (Origin::ThisLog, Err(_)) => {
                    self.reject(entry);
                    unusable_to = offset;
                }
            }
        }
        if is_page_used && unusable_to == 0 {
            self.stream.read_ahead(last_id, entries.len(), self.block).await;
        }
        self.committer.commit(&ready, Source::Stream).await?;
        if unusable_to > self.committer.loaded.last_offset() {
            self.committer.catch_up().await?;
        }
        self.move_position(entries);
        Ok(())
    }

    /// Reading goes on after the last entry that the checkpoint has passed.
    fn move_position(&mut self, entries: &[Entry<'_>]) {
        let Committer { loaded, progress, .. } = &mut self.committer;
        match entries.iter().rev().find(|entry| entry.id.offset <= loaded.last_offset()) {
            Some(entry) => loaded.position = entry.id,
            None => progress.blocked = progress.record_count() == 0 && !progress.is_searching,
        }
    }

    fn skip_duplicate(&mut self, id: EntryId) {
        debug!(consumer = self.committer.key.name, %id, "duplicate skipped: already folded");
        self.committer.counts.duplicate_count += 1;
        self.committer.progress.duplicate_count += 1;
    }

    fn reject(&mut self, entry: &Entry<'_>) {
        if entry.id > *self.rejected_to {
            *self.rejected_to = entry.id;
            self.committer.counts.rejected_count += 1;
            self.committer.progress.rejected_count += 1;
            let why =
                entry.fields.as_ref().err().map_or_else(|| "its token is not its batch's".into(), |e| e.to_string());
            warn!(consumer = self.committer.key.name, id = %entry.id, why, "stream entry ignored: it is not of this log");
        }
    }
}

impl<F: Fold> Committer<'_, F> {
    /// Looks up the tokens of the records after the checkpoint, up to `last_offset`.
    async fn look_up_tokens(&mut self, last_offset: i64) -> Result<()> {
        let next_offset = self.loaded.last_offset() + 1;
        let vouchers = &mut self.loaded.vouchers;
        vouchers.look_up(&self.session.client, self.key.partition, next_offset, last_offset).await
    }

    /// Whether the entry is the record at its offset. Its token must have been looked up.
    fn origin(&self, entry: &Entry<'_>) -> Origin {
        match &entry.fields {
            Ok(fields) => self.loaded.vouchers.origin(entry.id.offset, fields.token),
            Err(_) => Origin::Foreign,
        }
    }
}

/// The page as records, if it has the offsets `next_offset`, `next_offset + 1`, … and nothing else.
fn plain_records<'a>(entries: &[Entry<'a>], next_offset: i64) -> Option<Vec<Record<'a>>> {
    let numbered = (next_offset..).zip(entries);
    let records = numbered.map(|(offset, entry)| {
        let fields = entry.fields.as_ref().ok()?;
        (entry.id.offset == offset).then(|| record(offset, fields))
    });
    records.collect()
}

fn record<'a>(offset: i64, fields: &Fields<'a>) -> Record<'a> {
    let Fields { object, action, data, staged_at_us, token, traceparent } = *fields;
    Record { offset, token, object, action, data, staged_at_us, traceparent }
}
