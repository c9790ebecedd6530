//! The stream, compared with the log. The stream is a copy that may lack any entry, so holes and foreign entries are counted
//! and are no differences. But an entry with the right token must be equal to its record, because consumers apply it.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use pglog::Record;
use stream::codec::{Entry, EntryId, Fields, decode_xrange};
use stream::resp::Commands;
use stream::wire::Wire;

use super::Config;
use super::report::{Report, StreamLine};

/// Entries per request.
const PAGE_LEN_MAX: usize = 1000;

/// The comparison of a stream, and its result so far.
pub(super) struct Comparison {
    /// `None`: Redis could not be reached any more. The audit goes on without the stream.
    wire: Option<Wire>,
    line: StreamLine,
}

impl Comparison {
    /// Connects to the server of the stream. `None` if it is away; that is reported as a difference.
    pub async fn open(config: &Config, key: String, report: &mut Report) -> Option<Self> {
        match config.stream.redis_url.wire(&key, Duration::ZERO).await {
            Ok(wire) => Some(Self { wire: Some(wire), line: StreamLine { key, ..StreamLine::default() } }),
            Err(error) => {
                report.differ(format!("stream: not compared, {error:#} (--no-stream audits Postgres only)"));
                None
            }
        }
    }

    pub fn into_line(self) -> StreamLine {
        self.line
    }

    /// Counts the entries before the first retained record.
    pub async fn count_reaped(&mut self, first_retained: i64, report: &mut Report) {
        let mut after = None;
        while let Some(page) = self.read(0, first_retained - 1, after, report).await {
            let Some(entries) = self.decode(&page, report) else { return };
            self.line.reaped_count += entries.len() as u64;
            after = entries.last().map(|entry| entry.id);
            if entries.len() < PAGE_LEN_MAX {
                break;
            }
        }
    }

    /// Compares the entries at the offsets of these records, which are consecutive.
    pub async fn compare(&mut self, records: &[Record<'_>], report: &mut Report) {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return };
        let mut is_there = vec![false; records.len()];
        let mut after = None;
        while let Some(page) = self.read(first.offset, last.offset, after, report).await {
            let Some(entries) = self.decode(&page, report) else { return };
            for entry in &entries {
                let index = (entry.id.offset - first.offset) as usize;
                is_there[index] |= self.judge(entry, &records[index], report);
            }
            after = entries.last().map(|entry| entry.id);
            if entries.len() < PAGE_LEN_MAX {
                self.line.hole_count += is_there.iter().filter(|is_there| !**is_there).count() as u64;
                break;
            }
        }
    }

    /// Counts an entry. Returns whether it carries the token of the record, and so belongs to it.
    fn judge(&mut self, entry: &Entry<'_>, record: &Record<'_>, report: &mut Report) -> bool {
        let Ok(fields) = &entry.fields else {
            self.line.stranger_count += 1;
            return false;
        };
        let Fields { object, action, data, staged_at_us, token, traceparent } = fields;
        if *token != record.token {
            self.line.stranger_count += 1;
            return false;
        }
        let differing: Vec<&str> = [
            ("object", *object != record.object),
            ("action", *action != record.action),
            ("data", *data != record.data),
            ("staged_at_us", *staged_at_us != record.staged_at_us),
            // A streamer of a version without traces leaves it out.
            ("traceparent", traceparent.is_some() && *traceparent != record.traceparent),
        ]
        .into_iter()
        .filter_map(|(field, differs)| differs.then_some(field))
        .collect();
        if differing.is_empty() {
            self.line.equal_count += 1;
        } else {
            self.line.different_count += 1;
            report.differ(format!(
                "stream {}: entry {} has the token of its batch, and not the {} of its record",
                self.line.key,
                entry.id,
                differing.join(", ")
            ));
        }
        true
    }

    /// A page of the entries from `first_offset` to `last_offset`; only those after `after`, if it is given. `None` without
    /// Redis.
    async fn read(
        &mut self,
        first_offset: i64,
        last_offset: i64,
        after: Option<EntryId>,
        report: &mut Report,
    ) -> Option<Bytes> {
        if last_offset < first_offset {
            return None;
        }
        let from = after.map_or_else(|| format!("{first_offset}-0"), |id| format!("({id}"));
        let to = format!("{last_offset}-{}", u64::MAX);
        let mut question = Commands::default();
        question.add(&["XRANGE", &self.line.key, &from, &to, "COUNT", &PAGE_LEN_MAX.to_string()]);
        let page = ask(self.wire.as_mut()?, &question).await;
        page.map_err(|error| self.fail(&error, report)).ok()
    }

    fn decode<'p>(&mut self, page: &'p [u8], report: &mut Report) -> Option<Vec<Entry<'p>>> {
        decode_xrange(page).map_err(|error| self.fail(&error.into(), report)).ok()
    }

    fn fail(&mut self, error: &anyhow::Error, report: &mut Report) {
        self.wire = None;
        report.differ(format!("stream {}: not compared, {error:#}", self.line.key));
    }
}

async fn ask(wire: &mut Wire, question: &Commands) -> Result<Bytes> {
    wire.send(question).await?;
    wire.read(1).await
}
