//! Connections and transactions, as the functions of this crate use them: each statement is prepared before it runs.

use deadpool_postgres::ClientWrapper;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, GenericClient, Row, Statement};

/// A connection or a transaction, of tokio-postgres or of deadpool-postgres. deadpool-postgres keeps prepared statements: it
/// saves a round trip and the planning from the second execution on.
pub trait Session: Sync {
    /// The client or transaction of tokio-postgres.
    type Client: GenericClient + Sync;

    /// The client or transaction that runs the statements.
    fn client(&self) -> &Self::Client;

    /// Prepares a statement, if it is not prepared yet.
    ///
    /// # Errors
    /// Postgres is away, or refuses the statement.
    fn prepared(&self, sql: &str) -> impl Future<Output = Result<Statement, Error>> + Send;

    /// All rows.
    ///
    /// # Errors
    /// Postgres is away, or the statement fails.
    fn query(&self, sql: &str, params: Params<'_>) -> impl Future<Output = Result<Vec<Row>, Error>> + Send {
        async { self.client().query(&self.prepared(sql).await?, params).await }
    }

    /// The only row, if there is one.
    ///
    /// # Errors
    /// As [`query`](Self::query); also if there are several.
    fn query_opt(&self, sql: &str, params: Params<'_>) -> impl Future<Output = Result<Option<Row>, Error>> + Send {
        async { self.client().query_opt(&self.prepared(sql).await?, params).await }
    }

    /// The only row.
    ///
    /// # Errors
    /// As [`query`](Self::query); also if there is none, or several.
    fn query_one(&self, sql: &str, params: Params<'_>) -> impl Future<Output = Result<Row, Error>> + Send {
        async { self.client().query_one(&self.prepared(sql).await?, params).await }
    }

    /// The number of rows changed.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    fn execute(&self, sql: &str, params: Params<'_>) -> impl Future<Output = Result<u64, Error>> + Send {
        async { self.client().execute(&self.prepared(sql).await?, params).await }
    }

    /// Runs statements without parameters.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    fn batch_execute(&self, sql: &str) -> impl Future<Output = Result<(), Error>> + Send {
        async { self.client().batch_execute(sql).await }
    }
}

/// Parameters of a statement.
pub type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Session for ClientWrapper {
    type Client = tokio_postgres::Client;

    fn client(&self) -> &Self::Client {
        self
    }

    async fn prepared(&self, sql: &str) -> Result<Statement, Error> {
        self.prepare_cached(sql).await
    }
}

impl<'a> Session for deadpool_postgres::Transaction<'a> {
    type Client = tokio_postgres::Transaction<'a>;

    fn client(&self) -> &Self::Client {
        self
    }

    async fn prepared(&self, sql: &str) -> Result<Statement, Error> {
        self.prepare_cached(sql).await
    }
}

impl Session for tokio_postgres::Client {
    type Client = Self;

    fn client(&self) -> &Self {
        self
    }

    async fn prepared(&self, sql: &str) -> Result<Statement, Error> {
        self.prepare(sql).await
    }
}

impl Session for tokio_postgres::Transaction<'_> {
    type Client = Self;

    fn client(&self) -> &Self {
        self
    }

    async fn prepared(&self, sql: &str) -> Result<Statement, Error> {
        self.prepare(sql).await
    }
}
