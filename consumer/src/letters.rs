//! The dead letters of one page of records, on their way to Postgres.

use pglog::Record;
use tokio_postgres::types::ToSql;

use crate::fold::Rejection;

/// Records that the fold has rejected, as the statement that moves the checkpoint writes them. Columns of equal length.
#[derive(Debug, Default)]
pub(crate) struct Letters<'a> {
    offsets: Vec<i64>,
    objects: Vec<&'a str>,
    actions: Vec<&'a str>,
    data: Vec<&'a str>,
    reasons: Vec<String>,
}

impl<'a> Letters<'a> {
    /// Adds a record.
    pub fn push(&mut self, record: &Record<'a>, rejection: &Rejection) {
        self.offsets.push(record.offset);
        self.objects.push(record.object);
        self.actions.push(record.action);
        self.data.push(record.data);
        self.reasons.push(rejection.stored());
    }

    /// Adds those of another partition.
    pub fn append(&mut self, others: &Self) {
        self.offsets.extend(&others.offsets);
        self.objects.extend(&others.objects);
        self.actions.extend(&others.actions);
        self.data.extend(&others.data);
        self.reasons.extend(others.reasons.iter().cloned());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// The columns.
    pub fn params(&self) -> [&(dyn ToSql + Sync); 5] {
        [&self.offsets, &self.objects, &self.actions, &self.data, &self.reasons]
    }
}
