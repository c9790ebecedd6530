//! The folds that a program knows, by their names. A consumer is registered with the name and the version of its fold, and no
//! other fold may go on with its state.

use std::fmt;

use anyhow::{Context, Result, bail};
use pglog::{Partitions, Session};

use crate::advice::Whose;
use crate::checkpoint;
use crate::fold::{CheckpointKey, ModelFold, RowFold, StateFold};
use crate::kind::{Fold, Kind, Model, Rows, State};
use crate::other_fold::OtherFold;

/// Makes a fold in its first state.
pub type NewFold = fn() -> Box<dyn Fold>;

/// Makes a [`StateFold`] for a [`Registry`].
pub fn state_fold<F: StateFold>() -> Box<dyn Fold> {
    Box::new(State::<F>::default())
}

/// Makes a [`RowFold`] for a [`Registry`].
pub fn row_fold<F: RowFold>() -> Box<dyn Fold> {
    Box::new(Rows::<F>::default())
}

/// Makes a [`ModelFold`] for a [`Registry`].
pub fn model_fold<F: ModelFold + Default>() -> Box<dyn Fold> {
    Box::new(Model::<F>::default())
}

/// The folds of a program. It has at least one.
#[derive(Debug, Clone, Copy)]
pub struct Registry(pub &'static [NewFold]);

impl Registry {
    /// The fold of consumers that name none, and of the baseline.
    ///
    /// # Panics
    /// The registry is empty.
    pub fn first(&self) -> Box<dyn Fold> {
        self.0.first().expect("a program has a fold")()
    }

    /// The fold with this name.
    ///
    /// # Errors
    /// This program has none. The message lists those that it has.
    pub fn find(&self, name: &str) -> Result<Box<dyn Fold>> {
        let mut folds = self.0.iter().map(|new| new());
        folds
            .find(|fold| fold.id().name == name)
            .with_context(|| format!("there is no fold {name:?}: give one of {self}"))
    }

    /// The fold of a registered consumer, as its registration says.
    ///
    /// # Errors
    /// There is no such consumer, its fold or the version of its fold is not that of this program, or Postgres is away.
    pub async fn of_consumer(&self, session: &impl Session, key: &CheckpointKey) -> Result<Box<dyn Fold>> {
        let CheckpointKey { name, partition } = key;
        let registration = checkpoint::find(session, key).await?;
        let registration =
            registration.with_context(|| format!("no consumer {name:?} is registered in partition {partition}"))?;
        let whose = Whose { name: name.clone(), partitions: Partitions::All };
        let Some((registered, _)) = &registration.fold else {
            return Err(OtherFold::new(&whose, None, self.first().id()).into());
        };
        let Ok(fold) = self.find(registered) else {
            bail!(
                "consumer {name} has a fold of another program, {registered}: use that program, because this one has only {self}"
            );
        };
        claim(&whose, registration.fold.as_ref(), &fold)?;
        Ok(fold)
    }
}

impl fmt::Display for Registry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|new| new().id().name).collect();
        out.write_str(&names.join(", "))
    }
}

/// The relation of a fold to a registration that it may go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The registration is that of this fold.
    Own,
    /// The registration is older than the column for the fold. The fold says that it is of such a registration.
    Unclaimed,
}

/// Whether `fold` may go on with the registration of the consumer.
///
/// # Errors
/// It may not: the state is not its own.
pub(crate) fn claim(whose: &Whose, registered: Option<&(String, i32)>, fold: &impl Fold) -> Result<Claim, OtherFold> {
    let id = fold.id();
    match (registered, fold.kind()) {
        (Some((fold, version)), _) if fold == id.name && *version == id.version => Ok(Claim::Own),
        (None, Kind::Rows { owns_unnamed: true, .. }) => Ok(Claim::Unclaimed),
        (registered, _) => Err(OtherFold::new(whose, registered, id)),
    }
}
