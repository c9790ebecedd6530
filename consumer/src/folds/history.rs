//! The history: every record with its offset, in table `history`, where it stays after the reaper has deleted it.

use std::time::SystemTime;

use pglog::{Record, time_of_micros};

use crate::fold::{CheckpointKey, FoldId, Rejection, RowFold, RowsOf, Statement};

/// Records to be archived, as columns.
#[derive(Debug, Default)]
pub struct HistoryFold {
    offsets: Vec<i64>,
    objects: Vec<String>,
    actions: Vec<String>,
    data: Vec<String>,
    staged_at: Vec<SystemTime>,
    traceparents: Vec<Option<String>>,
}

impl RowFold for HistoryFold {
    const ID: FoldId = FoldId { name: "history", version: 1 };

    const ROWS: RowsOf = RowsOf::All;

    /// The history tells which records it has.
    const MAY_BEGIN_LATE: bool = true;

    fn takes(&self, _object: &str, _action: &str) -> bool {
        true
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        self.offsets.push(record.offset);
        self.objects.push(record.object.to_owned());
        self.actions.push(record.action.to_owned());
        self.data.push(record.data.to_owned());
        self.staged_at.push(time_of_micros(record.staged_at_us));
        self.traceparents.push(record.traceparent.map(str::to_owned));
        Ok(())
    }

    fn statements(&mut self, key: &CheckpointKey) -> Vec<Statement> {
        let Self { offsets, objects, actions, data, staged_at, traceparents } = std::mem::take(self);
        // An empty page has the offset 0, for which no part is made.
        let [first_offset, last_offset] = [offsets.first(), offsets.last()].map(|offset| offset.copied().unwrap_or(0));
        let making = Statement::new(
            "-- consumer::history::make_parts
             SELECT make_history_parts($1, $2, $3) WHERE $3 > 0",
        );
        // Another consumer may have archived the record, or this one before it was unregistered. A row that differs is of
        // another past of the log: the key of the table refuses the record then, and the consumer does not pass it.
        let inserting = Statement::new(
            "-- consumer::history::insert
             INSERT INTO history
                 (partition, record_offset, object, action, data, staged_at, traceparent, begins_range)
             SELECT $1, record_offset, object, action, data, staged_at, traceparent,
                    record_offset = $2 AND NOT EXISTS (
                        SELECT FROM history WHERE partition = $1 AND record_offset = $2 - 1)
             FROM unnest($3::bigint[], $4::text[], $5::text[], $6::text[]::json[], $7::timestamptz[], $8::text[])
                  AS page (record_offset, object, action, data, staged_at, traceparent)
             WHERE NOT COALESCE((
                 SELECT h.object = page.object AND h.action = page.action AND h.data::text = page.data::text
                    AND h.staged_at = page.staged_at AND h.traceparent IS NOT DISTINCT FROM page.traceparent
                 FROM history AS h WHERE h.partition = $1 AND h.record_offset = page.record_offset), false)",
        )
        .refused_means(
            "the history has another record at one of these offsets, of a past that this log does not have: detach the parts \
             that are newer than the log, or delete their rows beyond it",
        );
        vec![
            making.with(key.partition).with(first_offset).with(last_offset),
            inserting
                .with(key.partition)
                .with(first_offset)
                .with(offsets)
                .with(objects)
                .with(actions)
                .with(data)
                .with(staged_at)
                .with(traceparents),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pglog::Partition;

    use super::*;

    #[test]
    fn every_record_is_kept_as_it_is() {
        let mut fold = HistoryFold::default();
        for (offset, object, data, traceparent) in [(7, "ride", "{}", None), (8, "receipt", "not json", Some("00-1"))] {
            assert!(fold.takes(object, "create"));
            let record = Record {
                partition: Partition::FIRST,
                offset,
                token: 1,
                object,
                action: "create",
                data,
                staged_at_us: 1_500_000,
                traceparent,
            };
            fold.apply(&record).unwrap();
        }
        assert_eq!(
            (fold.offsets.as_slice(), fold.objects.as_slice()),
            (&[7, 8][..], &["ride".into(), "receipt".into()][..])
        );
        assert_eq!(fold.data, ["{}", "not json"]);
        assert_eq!(fold.traceparents, [None, Some("00-1".to_owned())]);
        assert_eq!(fold.staged_at[0], SystemTime::UNIX_EPOCH + Duration::from_millis(1500));
        let key = CheckpointKey { name: "history".to_owned(), partition: Partition::FIRST };
        assert_eq!(fold.statements(&key).len(), 2);
    }
}
