//! Compares the wallets' documents in Redis with the events in Postgres. It reads documents as any client may, and writes none.

use anyhow::{Context, Result};
use redis::aio::MultiplexedConnection;
use serde::Deserialize;
use serde_json::value::RawValue;
use wallet::WalletId;

use crate::sample::{Agreement, InPostgres, Model};

/// The page shows at most this many characters of an epoch.
const EPOCH_LEN_MAX: usize = 32;

/// The mark, and the document of each wallet that was asked for.
#[derive(Debug, Default)]
pub(crate) struct InRedis {
    mark: Option<Mark>,
    documents: Vec<Option<Document>>,
}

/// Says which documents are valid.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Mark {
    epoch: String,
    offset: i64,
}

/// The part of a document that is compared.
#[derive(Debug, Default)]
struct Document {
    /// `None`: another value is under the key.
    head: Option<Head>,
}

#[derive(Debug, Deserialize)]
struct Head {
    epoch: String,
    version_id: i64,
    #[serde(default)]
    event_id: Option<String>,
    data: Data,
}

#[derive(Debug, Deserialize)]
struct Data {
    /// The digits as they are written: a float might round them.
    balance: Box<RawValue>,
}

impl InRedis {
    /// Reads the mark and the documents at one moment.
    pub async fn read(redis: &mut MultiplexedConnection, mark_key: &str, ids: &[WalletId]) -> Result<Self> {
        let mut question = redis::cmd("MGET");
        question.arg(mark_key);
        for id in ids {
            question.arg(format!("wallet.{id}"));
        }
        let mut values: Vec<Option<Vec<u8>>> = question.query_async(redis).await.context("reading wallets in Redis")?;
        let documents = values.split_off(1);
        Ok(Self::of(values.pop().flatten().as_deref(), &documents))
    }

    fn of(mark: Option<&[u8]>, documents: &[Option<Vec<u8>>]) -> Self {
        let document = |value: &Vec<u8>| Document { head: serde_json::from_slice(value).ok() };
        Self {
            mark: mark.and_then(|mark| serde_json::from_slice(mark).ok()),
            documents: documents.iter().map(|value| value.as_ref().map(document)).collect(),
        }
    }

    /// The state of the model.
    pub fn model(&self) -> Model {
        match &self.mark {
            None => Model::Unmarked,
            Some(mark) => {
                Model::Marked { epoch: mark.epoch.chars().take(EPOCH_LEN_MAX).collect(), offset: mark.offset }
            }
        }
    }

    /// The version of a document.
    pub fn version(&self, index: usize) -> Option<i64> {
        self.documents.get(index)?.as_ref()?.head.as_ref().map(|head| head.version_id)
    }

    /// Compares the document of the wallet at this index with its state in Postgres, which must have been read later: then a
    /// document is never newer.
    pub fn compare(&self, index: usize, postgres: &InPostgres) -> Agreement {
        let Some(mark) = &self.mark else { return Agreement::Unmarked };
        let Some(document) = self.documents.get(index).and_then(Option::as_ref) else { return Agreement::Absent };
        let Some(head) = &document.head else { return Agreement::Differs };
        if head.epoch != mark.epoch {
            return Agreement::OtherEpoch;
        }
        let event_id = head.event_id.as_deref().filter(|id| !id.is_empty());
        if head.version_id < postgres.version {
            Agreement::Behind
        } else if (head.version_id, event_id, head.data.balance.get())
            == (postgres.version, postgres.event_id.as_deref(), postgres.balance.as_str())
        {
            Agreement::Equal
        } else {
            Agreement::Differs
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: &[u8] = br#"{"epoch":"a","offset":7,"token":-5}"#;

    fn document(epoch: &str, version: i64, event_id: &str, balance: &str) -> Option<Vec<u8>> {
        let text = format!(
            r#"{{"epoch":"{epoch}","version_id":{version},"event_id":"{event_id}","timestamp":"2026-01-01T00:00:00Z",
                "name":"wallet.w","entity_id":"w","data":{{"timestamp":"x","balance":{balance},"transactions":[]}}}}"#
        );
        Some(text.into_bytes())
    }

    fn compare(mark: Option<&[u8]>, document: Option<Vec<u8>>) -> Agreement {
        let postgres = InPostgres {
            version: 2,
            balance: "90071992547409.91".to_owned(),
            event_id: Some("e2".to_owned()),
            events: vec![],
        };
        InRedis::of(mark, &[document]).compare(0, &postgres)
    }

    #[test]
    fn a_document_is_equal_older_or_wrong() {
        let whole = "90071992547409.91";
        for (document, expected) in [
            (document("a", 2, "e2", whole), Agreement::Equal),
            (document("a", 1, "e1", "5.00"), Agreement::Behind),
            (document("a", 3, "e3", whole), Agreement::Differs),
            (document("a", 2, "other", whole), Agreement::Differs),
            (document("a", 2, "e2", "90071992547409.90"), Agreement::Differs),
            (document("b", 2, "e2", whole), Agreement::OtherEpoch),
            (document("a", 2, "e2", "[]"), Agreement::Differs),
            (Some(b"no document".to_vec()), Agreement::Differs),
            (None, Agreement::Absent),
        ] {
            let text = document.as_deref().map(String::from_utf8_lossy).unwrap_or_default().into_owned();
            assert_eq!(compare(Some(MARK), document), expected, "{text}");
        }
        assert_eq!(compare(None, document("a", 2, "e2", whole)), Agreement::Unmarked);
        assert_eq!(compare(Some(b"junk"), None), Agreement::Unmarked);
    }

    #[test]
    fn an_unused_wallet_equals_a_document_without_an_event() {
        let unused = InPostgres { balance: "0.00".to_owned(), ..InPostgres::default() };
        let there = InRedis::of(Some(MARK), &[document("a", 0, "", "0.00")]);
        assert_eq!((there.compare(0, &unused), there.version(0)), (Agreement::Equal, Some(0)));
        assert_eq!(there.model(), Model::Marked { epoch: "a".to_owned(), offset: 7 });
        let away = InRedis::of(None, &[]);
        assert_eq!((away.version(0), away.model()), (None, Model::Unmarked));
    }
}
