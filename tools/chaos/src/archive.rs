//! The table `history`, compared with the log as the checker has read it: from the first record to the checkpoint of the
//! consumer that writes it, no record may be missing, and none may differ (I2).

use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Partition, Record, history_page};

use crate::history::History;

/// Records per query.
const PAGE_LEN_MAX: i64 = 1000;

/// Records that each look compares again. A look must stay short, however many records there are.
const AGAIN_LEN_MAX: i64 = 2000;

/// A record without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Content {
    token: i64,
    /// A hash of all that the history keeps.
    pub hash: u64,
}

impl Content {
    pub fn of(record: &Record<'_>) -> Self {
        let mut hasher = DefaultHasher::new();
        (record.object, record.action, record.data, record.staged_at_us, record.traceparent).hash(&mut hasher);
        Self { token: record.token, hash: hasher.finish() }
    }
}

/// The part of the history that was compared.
pub(crate) struct Archive {
    partition: Partition,
    /// The first offset that was not compared yet.
    next_offset: i64,
    /// The first offset that is compared again. A record that was right may be changed later.
    again_offset: i64,
}

impl Archive {
    pub fn new(partition: Partition) -> Self {
        Self { partition, next_offset: 1, again_offset: 1 }
    }

    /// Compares the archived records that are new, and some of the others. `contents[o - 1]` is the record at offset o.
    pub async fn look(&mut self, client: &Client, passed: i64, contents: &[Content], history: &History) -> Result<()> {
        // After a crash of Postgres the checkpoint may be lower, and the records behind it are gone with it.
        let first_offset = self.next_offset.min(passed + 1);
        self.compare(client, (first_offset, passed), contents, history).await?;
        self.next_offset = passed + 1;
        let last_again = passed.min(self.again_offset + AGAIN_LEN_MAX - 1);
        self.compare(client, (self.again_offset, last_again), contents, history).await?;
        self.again_offset = if last_again >= passed { 1 } else { last_again + 1 };
        Ok(())
    }

    /// Compares all records again, in the next looks.
    pub fn start_over(&mut self) {
        self.next_offset = 1;
    }

    async fn compare(
        &self,
        client: &Client,
        (first, last): (i64, i64),
        contents: &[Content],
        history: &History,
    ) -> Result<()> {
        let mut next_offset = first;
        while next_offset <= last {
            let len_max = PAGE_LEN_MAX.min(last - next_offset + 1);
            let page =
                history_page(client, self.partition, next_offset, len_max).await.context("reading the history")?;
            if page.is_empty() {
                history.violation(&format!("I2: the history lacks the record at offset {next_offset}"));
                return Ok(());
            }
            for record in page.records() {
                if contents.get(record.offset as usize - 1).map(|content| content.hash)
                    != Some(Content::of(&record).hash)
                {
                    history.violation(&format!("I2: the history has another record at offset {}", record.offset));
                }
            }
            next_offset += page.len() as i64;
        }
        Ok(())
    }
}
