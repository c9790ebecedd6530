//! Wallets as readers see them: from the read model in Redis if it has them, else from Postgres. And the other direction: the
//! effects of a committed transaction are written into the read model before the client has its response.

use axum::http::HeaderValue;
use tracing::debug;
use wallet::WalletId;
use wallet::documents::{Change, DOCS, Document, Head};
use wallet::model::{Away, Epoch, Model};

use crate::database::Database;
use crate::error::Error;

/// Where a wallet was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The read model.
    Redis,
    /// The events.
    Postgres,
}

impl Source {
    /// Its name, as the header `Read-From` and the metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Postgres => "postgres",
        }
    }

    /// The value of the header.
    pub fn header(self) -> HeaderValue {
        HeaderValue::from_static(self.name())
    }
}

/// The read model, and Postgres behind it. Clones share the connections.
#[derive(Clone)]
pub(crate) struct WalletModel {
    model: Option<Model>,
    database: Database,
}

impl WalletModel {
    /// Without a model, Postgres alone is read.
    pub fn new(model: Option<Model>, database: Database) -> Self {
        Self { model, database }
    }

    /// The epoch to present to [`write_through`](Self::write_through). Take it before the transaction begins.
    pub fn epoch(&self) -> Option<Epoch> {
        self.model.as_ref()?.epoch()
    }

    /// Writes the effects of a transaction that has committed, so that a client that has its response reads them. If
    /// Redis is away, the connection deletes the documents before it reads any other, and the projector writes them.
    pub async fn write_through(&self, epoch: Option<Epoch>, changes: &[Change]) {
        if let Some(model) = &self.model
            && !changes.is_empty()
            && let Err(Away) = model.put_changes(epoch, changes).await
        {
            debug!(wallet_count = changes.len(), "the read model did not take the changes in time");
        }
    }

    /// Deletes documents that may be outdated, behind the response.
    pub fn forget(&self, wallets: Vec<WalletId>) {
        if let Some(model) = self.model.clone() {
            tokio::spawn(async move { model.forget(&wallets).await });
        }
    }

    /// Reads the state of a wallet: from Redis if it has at least `min_version`, else from Postgres, whatever that has. `None`:
    /// the wallet has no accepted event, so its balance and version are 0.
    ///
    /// # Errors
    /// As [`Database::look_up`].
    pub async fn head(&self, wallet: WalletId, min_version: i64) -> Result<(Option<Head>, Source), Error> {
        if let Some(model) = &self.model
            && let Ok(Some(head)) = model.head(wallet).await
            && head.version >= min_version
        {
            return Ok((Some(head), Source::Redis));
        }
        let document = self.read(wallet).await?;
        Ok((document.map(|document| document.head()), Source::Postgres))
    }

    /// As [`head`](Self::head), with the newest transactions.
    ///
    /// # Errors
    /// As [`Database::look_up`].
    pub async fn document(&self, wallet: WalletId, min_version: i64) -> Result<(Option<Document>, Source), Error> {
        if let Some(model) = &self.model
            && let Ok(Some(document)) = model.document(wallet).await
            && document.version >= min_version
        {
            return Ok((Some(document), Source::Redis));
        }
        Ok((self.read(wallet).await?, Source::Postgres))
    }

    /// Reads Postgres, and writes the document into the read model behind the response.
    async fn read(&self, wallet: WalletId) -> Result<Option<Document>, Error> {
        // The read begins after the epoch is known. If Postgres is put back meanwhile, the epoch changes, and the write is refused.
        let epoch = self.epoch();
        let rows = self.database.look_up(DOCS, vec![Box::new(vec![wallet.to_string()])]).await?;
        let document = rows.first().map(Document::from_row);
        if let (Some(model), Some(_), Some(document)) = (self.model.clone(), epoch, document.clone()) {
            tokio::spawn(async move { model.put(epoch, &[document]).await });
        }
        Ok(document)
    }
}
