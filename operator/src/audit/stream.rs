//! The stream beside the log. It is a copy that may lack anything, so holes and strangers are told and no difference; an
//! entry that consumers believe, because its token is right, must say what the record says.

use common::stream::{Entry, EntryId, Fields, decode_xrange, stream_key};
use pglog::Record;
use redis::aio::MultiplexedConnection;

use super::Config;
use super::report::{Report, StreamLine};

/// Entries read at once.
const PAGE_LEN_MAX: usize = 1000;

/// A connection, shared by the partitions.
pub(super) struct Stream(MultiplexedConnection);

impl Stream {
    /// `None` if Redis is away, which is told.
    pub async fn connect(config: &Config, report: &mut Report) -> Option<Self> {
        match common::redis::connect(&config.stream.redis_url).await {
            Ok(connection) => Some(Self(connection)),
            Err(error) => {
                report.differ(format!("stream: not compared, {error:#} (--no-stream audits Postgres only)"));
                None
            }
        }
    }

    pub fn of_partition(&self, config: &Config, partition: i32) -> Comparison {
        let key = stream_key(&config.stream.stream_name, partition);
        let line = StreamLine { key, ..StreamLine::default() };
        Comparison { connection: self.0.clone(), line, has_failed: false }
    }
}

/// One stream, and what was found in it.
pub(super) struct Comparison {
    connection: MultiplexedConnection,
    line: StreamLine,
    /// Redis went away. The rest of the audit goes on without it.
    has_failed: bool,
}

impl Comparison {
    pub fn into_line(self) -> StreamLine {
        self.line
    }

    /// Counts the entries before the first retained record.
    pub async fn count_reaped(&mut self, first_retained: i64, report: &mut Report) {
        let mut after = None;
        while let Some(entries) = self.read(0, first_retained - 1, after, report).await {
            self.line.reaped_count += entries.len() as u64;
            after = entries.last().map(|entry| entry.id);
            if entries.len() < PAGE_LEN_MAX {
                break;
            }
        }
    }

    /// Compares the entries at the offsets of these records, which follow each other.
    pub async fn compare(&mut self, records: &[Record], report: &mut Report) {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return };
        let mut is_there = vec![false; records.len()];
        let mut after = None;
        while let Some(entries) = self.read(first.offset, last.offset, after, report).await {
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

    /// Whether the entry is the record's, equal or not.
    fn judge(&mut self, entry: &Entry, record: &Record, report: &mut Report) -> bool {
        let Ok(fields) = &entry.fields else {
            self.line.stranger_count += 1;
            return false;
        };
        let Fields { object, action, data, staged_at_us, token } = fields;
        if *token != record.token {
            self.line.stranger_count += 1;
            return false;
        }
        let differing: Vec<&str> = [
            ("object", *object != record.object),
            ("action", *action != record.action),
            ("data", *data != record.data),
            ("staged_at_us", *staged_at_us != record.staged_at_us),
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

    /// A page of the entries from `first_offset` to `last_offset`, behind `after` if given. `None` without Redis.
    async fn read(
        &mut self,
        first_offset: i64,
        last_offset: i64,
        after: Option<EntryId>,
        report: &mut Report,
    ) -> Option<Vec<Entry>> {
        if self.has_failed || last_offset < first_offset {
            return None;
        }
        let from = after.map_or_else(|| format!("{first_offset}-0"), |id| format!("({id}"));
        let reply = redis::cmd("XRANGE")
            .arg(&self.line.key)
            .arg(from)
            .arg(format!("{last_offset}-{}", u64::MAX))
            .arg("COUNT")
            .arg(PAGE_LEN_MAX)
            .query_async(&mut self.connection)
            .await;
        let entries = reply.map_err(anyhow::Error::from).and_then(|reply| Ok(decode_xrange(reply)?));
        match entries {
            Ok(entries) => Some(entries),
            Err(error) => {
                self.has_failed = true;
                report.differ(format!("stream {}: not compared, {error:#}", self.line.key));
                None
            }
        }
    }
}
