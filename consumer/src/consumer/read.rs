//! Reading the stream: which entries are records of ours, and where reading goes on (I4, I6).

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use common::shutdown::sleep_or_stop;
use pglog::Record;
use stream::codec::{Entry, EntryId, Fields};
use tracing::{debug, warn};

use super::{Consumer, Source};
use crate::fold::Fold;
use crate::outcome::{Fault, Interruption, Progress};
use crate::tail::{PAGE_LEN_MAX, Tail};
use crate::vouch::Verdict;

/// How often Postgres is asked for more while Redis is given time to come back.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What Redis answers when nothing has arrived.
const NO_PAGE: Bytes = Bytes::from_static(b"*-1\r\n");

impl<F: Fold> Consumer<F> {
    /// A page of the stream; nothing if none came in time, or while Redis is given time to come back.
    pub(super) async fn read_stream(&mut self, block: Option<Duration>) -> Result<Bytes> {
        if self.redis_again_at.is_some_and(|again_at| Instant::now() < again_at) {
            if block.is_some() {
                sleep_or_stop(POLL_INTERVAL, &self.shutdown).await;
            }
            return Ok(NO_PAGE);
        }
        self.redis_again_at = None;
        let position = self.place.as_ref().context("nothing is loaded")?.position;
        let stream = match self.stream.take().filter(|stream| stream.is_ready_for(position)) {
            Some(stream) => self.stream.insert(stream),
            None => self.stream.insert(Tail::connect(&self.redis, &self.key, block).await?),
        };
        stream.ask(position, block).await?;
        tokio::select! {
            page = stream.page() => page,
            () = self.shutdown.cancelled() => Ok(NO_PAGE),
        }
    }

    pub(super) async fn fold_entries(
        &mut self,
        entries: &[Entry<'_>],
        block: Option<Duration>,
        fault: &mut Fault,
        progress: &mut Progress,
    ) -> Result<()> {
        if let Some(records) = plain_records(entries, self.checkpoint()? + 1) {
            match self.fold_plain(&records, entries, block, fault, progress).await {
                Err(error) if matches!(error.downcast_ref(), Some(Interruption::Unvouched)) => {
                    self.place = None;
                    self.load().await?;
                }
                folded => return folded,
            }
        }
        self.fold_one_by_one(entries, block, fault, progress).await
    }

    /// Mostly a page is just what comes next. Then its tokens are looked up together with its commit.
    async fn fold_plain(
        &mut self,
        records: &[Record<'_>],
        entries: &[Entry<'_>],
        block: Option<Duration>,
        fault: &mut Fault,
        progress: &mut Progress,
    ) -> Result<()> {
        let (last_id, len) = (entries.last().context("a page has entries")?.id, entries.len());
        let mut stream = self.stream.take();
        let asking = async {
            // Redis gathers the next page while a full one is folded. A small one is folded at once, and the connection's task
            // sends its commit in this turn: somebody waits for that, and nobody for the next page.
            if len < PAGE_LEN_MAX {
                tokio::task::yield_now().await;
            }
            read_ahead(&mut stream, last_id, len, block).await;
        };
        let committing = self.commit(records, Source::Stream, fault, progress);
        let ((), committed) = tokio::join!(biased; asking, committing);
        self.stream = stream;
        committed?;
        self.parts()?.1.position = last_id;
        Ok(())
    }

    /// Looks at each entry: it may be a duplicate, a stranger, or lie behind a gap.
    async fn fold_one_by_one(
        &mut self,
        entries: &[Entry<'_>],
        block: Option<Duration>,
        fault: &mut Fault,
        progress: &mut Progress,
    ) -> Result<()> {
        // Where the stream cannot tell what comes next, and Postgres must be asked.
        let mut unusable_to = 0;
        let mut is_all_used = true;
        let mut ready = Vec::with_capacity(entries.len());
        let last_id = entries.last().context("a page has entries")?.id;
        let partition = self.partition;
        let (client, place) = self.parts()?;
        let known = place.vouchers.prepare(client, partition, place.mark.last_offset + 1, last_id.offset).await?;
        for entry in entries {
            let next = self.checkpoint()? + ready.len() as i64 + 1;
            let offset = entry.id.offset;
            if offset < next {
                self.skip_duplicate(entry.id, progress);
                continue;
            }
            let vouchers = &self.parts()?.1.vouchers;
            let verdict = match &entry.fields {
                Ok(fields) => vouchers.judge(offset, fields.token, &known),
                Err(_) => Verdict::Stranger,
            };
            match (verdict, &entry.fields) {
                // Very far ahead: the records in between are nearer than their tokens.
                (Verdict::NotKnownYet, _) => {
                    unusable_to = offset;
                    break;
                }
                (Verdict::OfThisLog, Ok(fields)) => {
                    if offset > next {
                        self.commit(&std::mem::take(&mut ready), Source::Stream, fault, progress).await?;
                        if !self.heal(offset - 1, fault, progress).await? {
                            is_all_used = false;
                            break;
                        }
                    }
                    ready.push(record(offset, fields));
                }
                // It sits where a record of ours belongs, and Redis refuses ours because of it.
                (Verdict::Stranger, _) | (Verdict::OfThisLog, Err(_)) => {
                    self.reject(entry, progress);
                    unusable_to = offset;
                }
            }
        }
        if is_all_used && unusable_to == 0 {
            read_ahead(&mut self.stream, last_id, entries.len(), block).await;
        }
        self.commit(&ready, Source::Stream, fault, progress).await?;
        if unusable_to > self.checkpoint()? {
            self.catch_up(fault, progress).await?;
        }
        let place = self.parts()?.1;
        match entries.iter().rev().find(|entry| entry.id.offset <= place.mark.last_offset) {
            Some(entry) => place.position = entry.id,
            None => progress.blocked = progress.record_count() == 0,
        }
        Ok(())
    }

    fn skip_duplicate(&mut self, id: EntryId, progress: &mut Progress) {
        debug!(consumer = self.name, %id, "duplicate skipped: already folded");
        self.counts.duplicate_count += 1;
        progress.duplicate_count += 1;
    }

    fn reject(&mut self, entry: &Entry<'_>, progress: &mut Progress) {
        if entry.id > self.rejected_to {
            self.rejected_to = entry.id;
            self.counts.rejected_count += 1;
            progress.rejected_count += 1;
            let why =
                entry.fields.as_ref().err().map_or_else(|| "its token is not its batch's".into(), |e| e.to_string());
            warn!(consumer = self.name, id = %entry.id, why, "stream entry ignored: it is not of this log");
        }
    }
}

/// Asks for the page after `position`, where reading will go on if the records in hand, a page of `page_len`, can be
/// committed. Does nothing if that has been done.
async fn read_ahead(stream: &mut Option<Tail>, position: EntryId, page_len: usize, block: Option<Duration>) {
    // A read that does not wait must not be answered before it is wanted, unless there is more for certain.
    if block.is_none() && page_len < PAGE_LEN_MAX {
        return;
    }
    if let Some(tail) = stream
        && tail.ask(position, block).await.is_err()
    {
        // The next read connects anew, and tells what is wrong.
        *stream = None;
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
