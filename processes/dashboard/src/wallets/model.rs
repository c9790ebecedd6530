//! Compares the wallets' documents in Redis with the events in Postgres.

use anyhow::Result;
use wallet::documents::Head;
use wallet::model::{Away, Epoch, Mark, Model as ReadModel};
use wallet::{WalletId, decimal};

use crate::sample::{Agreement, InPostgres, Model};

/// The mark, and the state of each wallet that was asked for.
#[derive(Debug)]
pub(crate) struct InRedis {
    mark: Option<Mark>,
    heads: Vec<Option<(Epoch, Head)>>,
}

impl InRedis {
    /// Reads the mark and the documents at one moment.
    pub async fn read(model: &ReadModel, ids: &[WalletId]) -> Result<Self, Away> {
        let (mark, heads) = model.heads(ids).await?;
        // After a restart of Redis, readers believe no document until the projector has begun a new epoch.
        Ok(Self { mark: mark.filter(|mark| mark.epoch.is_for(model.run())), heads })
    }

    /// The state of the model.
    pub fn model(&self) -> Model {
        match &self.mark {
            None => Model::Unmarked,
            Some(mark) => Model::Marked { epoch: mark.epoch.to_string(), offset: mark.offset() },
        }
    }

    /// The version that the document of the wallet at this index has.
    pub fn version(&self, index: usize) -> Option<i64> {
        self.heads.get(index)?.map(|(_, head)| head.version)
    }

    /// Compares the document of the wallet at this index with its state in Postgres, which must have been read later: then a
    /// document is never newer.
    pub fn compare(&self, index: usize, postgres: &InPostgres) -> Agreement {
        let Some(mark) = &self.mark else { return Agreement::Unmarked };
        match self.heads.get(index).copied().flatten() {
            None if postgres.version == 0 => Agreement::Equal,
            None => Agreement::Absent,
            Some((epoch, _)) if epoch != mark.epoch => Agreement::OtherEpoch,
            Some((_, head)) if head.version < postgres.version => Agreement::Behind,
            Some((_, head)) => {
                let is_equal = (head.version, Some(head.event_id.as_str()), decimal(head.balance_minor).as_str())
                    == (postgres.version, postgres.event_id.as_deref(), postgres.balance.as_str());
                if is_equal { Agreement::Equal } else { Agreement::Differs }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wallet::EventId;
    use wallet::model::Marked;

    use super::*;

    #[test]
    fn a_document_is_equal_older_or_wrong() {
        let (epoch, [first, second]) = (Epoch::random(), [EventId::new(), EventId::new()]);
        let mark = Mark::new(epoch, [Marked { offset: 7, token: 1 }]);
        let timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let head = |epoch, version, event_id, balance_minor| {
            Some((epoch, Head { version, event_id, timestamp, balance_minor }))
        };
        let postgres =
            InPostgres { version: 2, balance: "3.00".to_owned(), event_id: Some(second.to_string()), events: vec![] };
        let compare = |mark, head, postgres| InRedis { mark, heads: vec![head] }.compare(0, postgres);
        for (head, expected) in [
            (head(epoch, 2, second, 300), Agreement::Equal),
            (head(epoch, 1, first, 500), Agreement::Behind),
            (head(epoch, 3, EventId::new(), 300), Agreement::Differs),
            (head(epoch, 2, first, 300), Agreement::Differs),
            (head(epoch, 2, second, 301), Agreement::Differs),
            (head(Epoch::random(), 2, second, 300), Agreement::OtherEpoch),
            (None, Agreement::Absent),
        ] {
            assert_eq!(compare(Some(mark.clone()), head, &postgres), expected, "{head:?}");
        }
        assert_eq!(compare(None, head(epoch, 2, second, 300), &postgres), Agreement::Unmarked);
        let unused = InPostgres { balance: decimal(0), ..InPostgres::default() };
        assert_eq!(compare(Some(mark.clone()), None, &unused), Agreement::Equal, "it needs no document");
        assert_eq!(compare(Some(mark), head(epoch, 1, first, 0), &unused), Agreement::Differs);
    }

    #[test]
    fn a_model_is_marked_or_not() {
        let epoch = Epoch::random();
        let marked = InRedis { mark: Some(Mark::new(epoch, [Marked { offset: 7, token: 1 }])), heads: vec![] };
        assert_eq!(marked.model(), Model::Marked { epoch: epoch.to_string(), offset: 7 });
        let unmarked = InRedis { mark: None, heads: vec![] };
        assert_eq!((unmarked.model(), unmarked.version(0)), (Model::Unmarked, None));
    }
}
