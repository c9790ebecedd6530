//! The dead letters of a partition, in offset order, to be read side by side with the records.

use std::collections::VecDeque;

use anyhow::{Context, Result};
use deadpool_postgres::Transaction;
use pglog::{Partition, Record};
use tokio_postgres::{Portal, Row};

/// Dead letters per fetch. Each may have 64 KiB.
const PAGE_LEN_MAX: i32 = 100;

/// A consumer's dead letter.
pub(super) struct Letter {
    /// The consumer.
    pub name: String,
    /// The offset of the record.
    pub offset: i64,
    /// A person has decided that it is not to be folded.
    pub is_dropped: bool,
    row: Row,
}

impl Letter {
    fn new(row: Row) -> Self {
        Self { name: row.get("name"), offset: row.get("record_offset"), is_dropped: row.get("is_dropped"), row }
    }

    /// The record as the dead letter stores it: without token, time and trace.
    pub fn record(&self) -> Record<'_> {
        let (partition, object, action) = (self.row.get("partition"), self.row.get("object"), self.row.get("action"));
        let data = self.row.get("data");
        Record { partition, offset: self.offset, token: 0, object, action, data, staged_at_us: 0, traceparent: None }
    }
}

/// Reads the dead letters once, from first to last. Postgres sorts them; one page is in memory.
pub(super) struct Letters {
    portal: Portal,
    page: VecDeque<Letter>,
    is_done: bool,
}

impl Letters {
    pub async fn open(tx: &Transaction<'_>, partition: Partition) -> Result<Self> {
        let portal = tx
            .bind(
                "-- operator::audit::letters
                 SELECT name, partition, record_offset, object, action, data, dropped_at IS NOT NULL AS is_dropped
                 FROM dead_letters WHERE partition = $1 ORDER BY record_offset, name",
                &[&partition],
            )
            .await
            .context("reading dead letters")?;
        Ok(Self { portal, page: VecDeque::new(), is_done: false })
    }

    /// The dead letters at the next offset that has some. `None`: no such offset up to `last_offset`.
    pub async fn next_up_to(&mut self, tx: &Transaction<'_>, last_offset: i64) -> Result<Option<Vec<Letter>>> {
        let mut found: Vec<Letter> = Vec::new();
        while let Some(letter) = self.peek(tx).await? {
            let offset = letter.offset;
            if offset > last_offset || found.first().is_some_and(|first| first.offset != offset) {
                break;
            }
            found.extend(self.page.pop_front());
        }
        Ok((!found.is_empty()).then_some(found))
    }

    async fn peek(&mut self, tx: &Transaction<'_>) -> Result<Option<&Letter>> {
        if self.page.is_empty() && !self.is_done {
            let rows = tx.query_portal(&self.portal, PAGE_LEN_MAX).await.context("reading dead letters")?;
            self.is_done = (rows.len() as i32) < PAGE_LEN_MAX;
            self.page.extend(rows.into_iter().map(Letter::new));
        }
        Ok(self.page.front())
    }
}
