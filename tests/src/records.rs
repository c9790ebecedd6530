//! Records that tests keep, to compare two reads of the log.

use pglog::{Reader, Record};

use crate::World;

/// An owned record; [`Record`] points into a page.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ReadRecord {
    pub offset: i64,
    pub token: i64,
    pub object: String,
    pub action: String,
    pub data: String,
    pub staged_at_us: i64,
    pub traceparent: Option<String>,
}

impl From<Record<'_>> for ReadRecord {
    fn from(record: Record<'_>) -> Self {
        let Record { offset, token, object, action, data, staged_at_us, traceparent, .. } = record;
        let (object, action, data) = (object.to_owned(), action.to_owned(), data.to_owned());
        Self { offset, token, object, action, data, staged_at_us, traceparent: traceparent.map(str::to_owned) }
    }
}

impl World {
    /// All records from `offset` on, read in pages of at most `page_len`.
    pub async fn read_from(&self, offset: i64, page_len: i64) -> Vec<ReadRecord> {
        let mut reader = Reader::at(self.client(), pglog::Partition::FIRST, offset).await.unwrap();
        let mut records = Vec::new();
        loop {
            let page = reader.next_page(self.client(), page_len).await.unwrap();
            if page.is_empty() {
                return records;
            }
            records.extend(page.records().map(ReadRecord::from));
        }
    }
}

/// The statement by which a person adds to a number in the state of a consumer.
pub fn falsify(consumer: &str, member: &str, by: i64) -> String {
    format!(
        "UPDATE checkpoints SET state = jsonb_set(state::jsonb, '{{{member}}}',
             CASE json_typeof(state->'{member}') WHEN 'string' THEN to_jsonb(((state->>'{member}')::bigint + {by})::text)
             ELSE to_jsonb((state->>'{member}')::bigint + {by}) END)::json
         WHERE name = '{consumer}'"
    )
}
