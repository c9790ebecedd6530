//! The spool against the units: files without a unit are taken up, and files of units that are final are deleted.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deadpool_postgres::Client;
use futures_util::{StreamExt, TryStreamExt};
use process::{Failure, Turn, Work};
use tracing::{info, warn};
use uuid::Uuid;

use crate::declaration::{Declaration, Resource};
use crate::hand::Hand;
use crate::incoming::subject_of;
use crate::metrics;
use crate::points::{Point, pass};
use crate::spool::{SpoolError, Spooled};
use crate::units::{self, Accepted, NewUnit};

/// A file without a unit is taken up after this time: until then its request may still be accepted.
const FILE_AGE_MIN: Duration = Duration::from_secs(60);

/// Files and rows that are looked at together.
const PAGE_LEN: usize = 500;

/// Compares the spool with the units, again and again.
pub(crate) struct Sweeping {
    hand: Hand,
    declaration: Arc<Declaration>,
    /// The files that cannot become units, by their names. Each was told once.
    unusable: HashSet<String>,
}

impl Work for Sweeping {
    type Fault = ();

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        let cleared_count = self.hand.spool.clear_unfinished(FILE_AGE_MIN).await.map_err(anyhow::Error::from)?;
        if cleared_count > 0 {
            info!(cleared_count, "files that were never complete are cleared");
        }
        while self.delete_final().await? == PAGE_LEN {}
        self.take_up().await?;
        Ok(Turn::done().pausing(FILE_AGE_MIN / 2))
    }
}

/// Files that cannot be read now, before a sweep gives up.
const UNREADABLE_COUNT_MAX: usize = 10;

impl Sweeping {
    /// A sweep of the spool in this hand.
    pub fn new(hand: Hand, declaration: Arc<Declaration>) -> Self {
        Self { hand, declaration, unusable: HashSet::new() }
    }

    /// Deletes files of units that are final, and notes that they are gone. Returns their number.
    async fn delete_final(&self) -> Result<usize> {
        let client = self.hand.client().await?;
        let names = units::final_files(&client, &self.hand.spool.id().to_string(), PAGE_LEN as i64).await?;
        for name in &names {
            ensure!(self.hand.discard(name).await, "a file of a unit that is final cannot be deleted");
        }
        // A deletion is durable only then. After a crash the file would come back, and without a row it would be a new unit.
        self.hand.spool.sync().await?;
        if !names.is_empty() {
            pass(Point::FilesSwept, "");
        }
        units::note_gone(&client, &names).await?;
        Ok(names.len())
    }

    async fn take_up(&mut self) -> Result<()> {
        let listed_count = AtomicUsize::new(0);
        let listed = self.hand.spool.list().inspect_ok(|_| _ = listed_count.fetch_add(1, Relaxed));
        let listed = listed.try_filter(|file| std::future::ready(file.age >= FILE_AGE_MIN));
        let mut pages = std::pin::pin!(listed.chunks(PAGE_LEN));
        let (mut unusable, mut unreadable) = (HashSet::new(), Vec::new());
        while let Some(page) = pages.next().await {
            let names: Vec<String> =
                page.into_iter().map(|file| Ok(file?.name)).collect::<Result<_>>().context("listing the spool")?;
            let client = self.hand.client().await?;
            let known = units::states_of_files(&client, &names).await?;
            for name in names {
                match known.get(&name) {
                    Some(state) if state.is_final() => {
                        self.hand.discard(&name).await;
                    }
                    Some(_) => {}
                    None => match self.take_up_file(&client, &name).await {
                        Ok(None) => {}
                        Ok(Some(why)) => {
                            if !self.unusable.contains(&name) {
                                warn!(name, why, "a file of the spool cannot become a unit, and is kept");
                            }
                            unusable.insert(name);
                        }
                        // It holds up no other file, unless the whole spool is away.
                        Err(error) if error.is::<SpoolError>() && unreadable.len() < UNREADABLE_COUNT_MAX => {
                            unreadable.push(error.context(format!("reading the file {name} of the spool")));
                        }
                        Err(error) => return Err(error),
                    },
                }
            }
        }
        metrics::swept(listed_count.load(Relaxed), unusable.len());
        self.unusable = unusable;
        unreadable.pop().map_or(Ok(()), Err)
    }

    /// Makes a unit of a file whose request was never answered, or whose row is lost because Postgres was put back. If it cannot
    /// become one, the result is the reason.
    async fn take_up_file(&self, client: &Client, name: &str) -> Result<Option<String>> {
        let (spooled, document) = match self.hand.spool.read(name).await {
            Ok(read) => read,
            // Its request was refused a moment ago.
            Err(SpoolError::Unknown) => return Ok(None),
            Err(fault @ SpoolError::Damaged { .. }) => return Ok(Some(fault.to_string())),
            Err(error) => return Err(error.into()),
        };
        let resource = self.declaration.resources.iter().find(|resource| resource.name == spooled.head.resource);
        let Some(resource) = resource else {
            return Ok(Some(format!("its resource {} is not declared", spooled.head.resource)));
        };
        let subject = match subject_of(resource, &document) {
            Ok(subject) => subject,
            Err(refusal) => return Ok(Some(refusal.error.into_owned())),
        };
        self.accept(client, &spooled, resource, subject).await?;
        Ok(None)
    }

    async fn accept(&self, client: &Client, spooled: &Spooled, resource: &Resource, subject: String) -> Result<()> {
        pass(Point::FileFound, &subject);
        let unit = NewUnit {
            key: Uuid::new_v4().to_string(),
            resource: resource.name.clone(),
            subject,
            destinations: resource.destinations.clone(),
            spool_id: self.hand.spool.id().to_string(),
            spool_name: spooled.name.clone(),
            idempotency_key: spooled.head.idempotency_key.clone(),
            content_hash: spooled.hash.to_vec(),
            traceparent: spooled.head.traceparent.clone(),
            waits: true,
        };
        let name = &*spooled.name;
        let accepted = units::accept(client, &unit).await?;
        metrics::taken_up(&accepted);
        pass(Point::FileTaken, &unit.subject);
        match accepted {
            Accepted::New { uow, .. } => info!(name, uow, "a file is taken up"),
            Accepted::Known { has_this_file: true, .. } => {}
            // Its client has sent the request again, or has used the key for another one.
            Accepted::Known { .. } | Accepted::KeyMismatch => {
                info!(name, "a file is deleted, because its key belongs to another unit");
                self.hand.discard(name).await;
            }
        }
        Ok(())
    }
}
