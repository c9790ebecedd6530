//! All kinds of folds as the loop sees them.

use std::future::ready;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Record;

use crate::fold::{
    CheckpointKey, FoldId, LogPlace, ModelFold, PageEnd, Rejection, RowFold, RowsOf, STATE_LEN_MAX, StateFold,
    Statement,
};
use crate::outcome::Interruption;

/// Work of a fold on its model, in progress.
pub type ModelWork<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// A fold of any kind: [`State`], [`Rows`] or [`Model`].
pub trait Fold: Send + Sync {
    /// Name and version.
    fn id(&self) -> FoldId;

    /// Where the fold keeps what it derives.
    fn kind(&self) -> Kind;

    /// Begins with the committed state, and forgets everything else.
    ///
    /// # Errors
    /// It is not the state of this fold.
    fn restore(&mut self, state: Option<&str>) -> Result<()>;

    /// Begins at the first record.
    fn restart(&mut self);

    /// Begins a page of records.
    fn begin_page(&mut self);

    /// As [`StateFold::takes`] and [`RowFold::takes`].
    fn takes(&self, object: &str, action: &str) -> bool;

    /// As [`StateFold::apply`] and [`RowFold::apply`].
    ///
    /// # Errors
    /// The record can never apply.
    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection>;

    /// The state as JSON. `None`: the fold has no state, but rows or a model.
    ///
    /// # Errors
    /// It is too long for its row.
    fn state(&self) -> Result<Option<String>>;

    /// The statements that write the rows of this page; none if the fold has no rows.
    fn statements(&mut self, _: &CheckpointKey) -> Vec<Statement> {
        Vec::new()
    }

    /// The statements that succeed only if the fold can use its tables: those of an empty page.
    fn trial(&mut self, key: &CheckpointKey) -> Vec<Statement> {
        self.begin_page();
        self.statements(key)
    }

    /// As [`ModelFold::settle`]. Nothing if the fold has no model.
    fn settle<'a>(&'a mut self, _: &'a Client, _: PageEnd) -> ModelWork<'a, ()> {
        Box::pin(ready(Ok(())))
    }

    /// As [`ModelFold::tend`]. Nothing if the fold has no model.
    fn tend<'a>(&'a mut self, _: &'a Client, _: &'a [LogPlace]) -> ModelWork<'a, Duration> {
        Box::pin(ready(Ok(Duration::MAX)))
    }

    /// The result in a few words, for the log line of a batch.
    fn summary(&self) -> String;

    /// A fold of the same kind in its first state, for a further partition. `None`: this one serves all partitions.
    fn sibling(&self) -> Option<Self>
    where
        Self: Sized;

    /// The [`sibling`](Self::sibling) in a box.
    fn boxed_sibling(&self) -> Option<Box<dyn Fold>>;
}

/// Where a fold keeps what it derives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// In the row of the checkpoint.
    State,
    /// In rows of its own.
    Rows {
        /// As [`RowFold::ROWS`].
        of: RowsOf,
        /// As [`RowFold::MAY_BEGIN_LATE`].
        may_begin_late: bool,
        /// As [`RowFold::OWNS_UNNAMED`].
        owns_unnamed: bool,
    },
    /// In a model outside of Postgres.
    Model,
}

/// A [`StateFold`] for the loop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State<F>(pub F);

impl<F: StateFold> Fold for State<F> {
    fn id(&self) -> FoldId {
        F::ID
    }

    fn kind(&self) -> Kind {
        Kind::State
    }

    fn restore(&mut self, state: Option<&str>) -> Result<()> {
        let json = state.with_context(|| format!("the state of fold {} is gone", F::ID))?;
        self.0 = serde_json::from_str(json).with_context(|| format!("this is no state of fold {}: {json}", F::ID))?;
        Ok(())
    }

    fn restart(&mut self) {
        self.0 = F::default();
    }

    fn begin_page(&mut self) {}

    fn takes(&self, object: &str, action: &str) -> bool {
        self.0.takes(object, action)
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        self.0.apply(record)
    }

    fn state(&self) -> Result<Option<String>> {
        let json = serde_json::to_string(&self.0).with_context(|| format!("writing the state of fold {}", F::ID))?;
        ensure!(json.len() <= STATE_LEN_MAX, Interruption::StateTooLong { fold: F::ID, len: json.len() });
        Ok(Some(json))
    }

    fn summary(&self) -> String {
        self.0.summary()
    }

    fn sibling(&self) -> Option<Self> {
        Some(Self(F::default()))
    }

    fn boxed_sibling(&self) -> Option<Box<dyn Fold>> {
        Some(Box::new(Self(F::default())))
    }
}

/// A [`RowFold`] for the loop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rows<F>(pub F);

impl<F: RowFold> Fold for Rows<F> {
    fn id(&self) -> FoldId {
        F::ID
    }

    fn kind(&self) -> Kind {
        Kind::Rows { of: F::ROWS, may_begin_late: F::MAY_BEGIN_LATE, owns_unnamed: F::OWNS_UNNAMED }
    }

    fn restore(&mut self, state: Option<&str>) -> Result<()> {
        ensure!(state.is_none(), "fold {} has rows, and this registration has a state", F::ID);
        self.restart();
        Ok(())
    }

    fn restart(&mut self) {
        self.0 = F::default();
    }

    fn begin_page(&mut self) {
        self.restart();
    }

    fn takes(&self, object: &str, action: &str) -> bool {
        self.0.takes(object, action)
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        self.0.apply(record)
    }

    fn state(&self) -> Result<Option<String>> {
        Ok(None)
    }

    fn statements(&mut self, key: &CheckpointKey) -> Vec<Statement> {
        self.0.statements(key)
    }

    fn summary(&self) -> String {
        format!("{} noted", F::ID.name)
    }

    fn sibling(&self) -> Option<Self> {
        Some(Self(F::default()))
    }

    fn boxed_sibling(&self) -> Option<Box<dyn Fold>> {
        Some(Box::new(Self(F::default())))
    }
}

/// A [`ModelFold`] for the loop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Model<F>(pub F);

impl<F: ModelFold> Fold for Model<F> {
    fn id(&self) -> FoldId {
        F::ID
    }

    fn kind(&self) -> Kind {
        Kind::Model
    }

    fn restore(&mut self, state: Option<&str>) -> Result<()> {
        ensure!(state.is_none(), "fold {} has a model, and this registration has a state", F::ID);
        self.restart();
        Ok(())
    }

    fn restart(&mut self) {
        self.0.doubt();
    }

    fn begin_page(&mut self) {
        self.0.begin_page();
    }

    fn takes(&self, object: &str, action: &str) -> bool {
        self.0.takes(object, action)
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        self.0.apply(record)
    }

    fn state(&self) -> Result<Option<String>> {
        Ok(None)
    }

    fn trial(&mut self, _: &CheckpointKey) -> Vec<Statement> {
        vec![self.0.trial()]
    }

    fn settle<'a>(&'a mut self, client: &'a Client, page: PageEnd) -> ModelWork<'a, ()> {
        Box::pin(self.0.settle(client, page))
    }

    fn tend<'a>(&'a mut self, client: &'a Client, places: &'a [LogPlace]) -> ModelWork<'a, Duration> {
        Box::pin(self.0.tend(client, places))
    }

    fn summary(&self) -> String {
        format!("{} certain", F::ID.name)
    }

    /// A model is one, whatever the partition of the records that put a part of it out of date.
    fn sibling(&self) -> Option<Self> {
        None
    }

    fn boxed_sibling(&self) -> Option<Box<dyn Fold>> {
        None
    }
}

/// A fold that was chosen by its name.
impl Fold for Box<dyn Fold + '_> {
    fn id(&self) -> FoldId {
        (**self).id()
    }

    fn kind(&self) -> Kind {
        (**self).kind()
    }

    fn restore(&mut self, state: Option<&str>) -> Result<()> {
        (**self).restore(state)
    }

    fn restart(&mut self) {
        (**self).restart();
    }

    fn begin_page(&mut self) {
        (**self).begin_page();
    }

    fn takes(&self, object: &str, action: &str) -> bool {
        (**self).takes(object, action)
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        (**self).apply(record)
    }

    fn state(&self) -> Result<Option<String>> {
        (**self).state()
    }

    fn statements(&mut self, key: &CheckpointKey) -> Vec<Statement> {
        (**self).statements(key)
    }

    fn trial(&mut self, key: &CheckpointKey) -> Vec<Statement> {
        (**self).trial(key)
    }

    fn settle<'a>(&'a mut self, client: &'a Client, page: PageEnd) -> ModelWork<'a, ()> {
        (**self).settle(client, page)
    }

    fn tend<'a>(&'a mut self, client: &'a Client, places: &'a [LogPlace]) -> ModelWork<'a, Duration> {
        (**self).tend(client, places)
    }

    fn summary(&self) -> String {
        (**self).summary()
    }

    fn sibling(&self) -> Option<Self> {
        self.boxed_sibling()
    }

    fn boxed_sibling(&self) -> Option<Box<dyn Fold>> {
        (**self).boxed_sibling()
    }
}
