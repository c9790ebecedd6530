//! Consumers whose checkpoints and states are in a database of their own: loading them, registering them in both databases, and
//! telling the log how far they are.
//!
//! A mark outside of the log's database is an offset and the token of its batch. If the log has another token there, or no such
//! offset, it was put back to an older state, and the consumer has folded records that the log has not: it stops.

use anyhow::{Context, Result, ensure};
use deadpool_postgres::{ClientWrapper as Client, Transaction};
use pglog::{Partition, Session};

use super::clock::Clock;
use super::loaded::Loaded;
use super::part::{Part, fold_of};
use super::step::Committers;
use crate::advice::Whose;
use crate::bootstrap::{self, Role};
use crate::checkpoint::{self, Registration};
use crate::fold::{CheckpointKey, FoldId};
use crate::home;
use crate::kind::{Fold, Kind};
use crate::outcome::Interruption;
use crate::registry::claim;

/// As [`part::load`](super::part::load), out of a database of its own. The log's transaction is open while the own database
/// commits: until the log has the registration, the reaper waits for this transaction. After a crash between both commits the own
/// database is ahead, and the registration is finished from it.
///
/// # Errors
/// As [`part::load`](super::part::load); [`Interruption::StateLost`], [`Interruption::KeptInLog`], [`Interruption::PutBack`].
pub(super) async fn load<F: Fold>(
    (log, own): (&mut Client, &mut Client),
    folds: &mut [F],
    parts: &mut [Part],
    whose: &Whose,
    role: Option<Role>,
) -> Result<()> {
    let partitions: Vec<Partition> = parts.iter().map(|part| part.key.partition).collect();
    let tx = log.transaction().await.context("beginning to load")?;
    let own = own.transaction().await.context("beginning to load")?;
    let mut known = checkpoint::find_all(&tx, &whose.name, &partitions).await?;
    let mut kept = home::find_all(&own, &whose.name, &partitions).await?;
    let is_behind = |partition| match (known.get(partition), kept.get(partition)) {
        (Some(known), Some(kept)) => known.checkpoint.last_offset > kept.checkpoint.last_offset,
        _ => true,
    };
    if partitions.iter().any(is_behind) {
        bootstrap::begin_registering(&tx).await?;
    }
    let mut registering = Registering { log: &tx, own: &own, whose, role };
    let (mut loaded, mut told, fold_count) = (Vec::with_capacity(parts.len()), Vec::new(), folds.len());
    for (index, part) in parts.iter().enumerate() {
        let fold = &mut folds[fold_of(index, fold_count)];
        let (known, kept) = (known.remove(&part.key.partition), kept.remove(&part.key.partition));
        ensure!(
            known.as_ref().is_none_or(|known| known.is_elsewhere),
            Interruption::KeptInLog { whose: whose.clone() }
        );
        told.push(known.as_ref().map_or((0, 0), |known| (known.checkpoint.last_offset, known.token)));
        let registration = registering.find(fold, &part.key, known, kept).await?;
        claim(whose, registration.fold.as_ref(), fold).map_err(Interruption::OtherFold)?;
        loaded.push(Loaded::restore_or_advise(fold, registration, whose)?);
    }
    let places: Vec<(i64, i64)> = loaded.iter().map(|loaded| (loaded.last_offset(), loaded.token)).collect();
    let tokens = refuse_put_back(&tx, (whose, folds[0].id()), &partitions, &places, Some(&told)).await?;
    for ((loaded, part), token) in loaded.iter_mut().zip(parts.iter()).zip(tokens) {
        if loaded.token != 0 && loaded.token != token {
            home::renew_token(&own, &part.key, loaded.last_offset(), token).await?;
            loaded.token = token;
        }
    }
    own.commit().await.context("committing the registration in the own database")?;
    tx.commit().await.context("committing the registration")?;
    parts.iter_mut().zip(loaded).for_each(|(part, loaded)| part.loaded = Some(loaded));
    Ok(())
}

/// Both transactions of a registration.
struct Registering<'a, 'tx> {
    log: &'a Transaction<'tx>,
    own: &'a Transaction<'tx>,
    whose: &'a Whose,
    /// `None`: nothing is registered any more.
    role: Option<Role>,
}

impl Registering<'_, '_> {
    /// The row of a partition in the own database, with a row in the log that is not ahead of it.
    async fn find(
        &mut self,
        fold: &mut impl Fold,
        key: &CheckpointKey,
        known: Option<Registration>,
        kept: Option<Registration>,
    ) -> Result<Registration> {
        let (whose, partition) = (self.whose, key.partition);
        match (known, kept) {
            (Some(known), Some(kept)) => {
                // The own database was put back to an older state: the bound goes back with it.
                if known.checkpoint.last_offset > kept.checkpoint.last_offset {
                    self.note(fold, key, (kept.checkpoint.last_offset, kept.token)).await?;
                }
                Ok(kept)
            }
            (Some(_), None) => Err(Interruption::StateLost { whose: whose.clone(), fold: fold.id() }.into()),
            (None, kept) => {
                let role = self.role.ok_or(Interruption::Unregistered)?;
                home::insert_bound(self.log, fold, whose, partition, role).await?;
                let Some(kept) = kept else { return self.register(fold, key, role).await };
                self.note(fold, key, (kept.checkpoint.last_offset, kept.token)).await?;
                Ok(kept)
            }
        }
    }

    /// Registers in the own database, too. The state of reaped records is that of the reaper's baseline.
    async fn register(&mut self, fold: &mut impl Fold, key: &CheckpointKey, role: Role) -> Result<Registration> {
        let (Role::Consumer(start) | Role::Anew(start)) = role else { return Err(Interruption::Unregistered.into()) };
        ensure!(
            fold.kind() != Kind::Model,
            "fold {} keeps its model in Redis: leave STATE_DATABASE_URL out",
            fold.id()
        );
        fold.restart();
        let (last_offset, state) = home::beginning(self.log, fold, key, start).await?;
        let token = pglog::token_at(self.log, key.partition, last_offset).await.context("asking for a token")?;
        let place = (last_offset, token.unwrap_or(0));
        self.note(fold, key, place).await?;
        let state = if state.is_some() { state } else { fold.state()? };
        home::insert_own(self.log, self.own, fold, key, place, state.as_deref()).await?;
        let mut found = home::find_all(self.own, &key.name, &[key.partition]).await?;
        found.remove(&key.partition).context("the registration is gone")
    }

    /// Notes in the log how far the state is, if the records after it can be read.
    async fn note(&self, fold: &impl Fold, key: &CheckpointKey, (last_offset, token): (i64, i64)) -> Result<()> {
        bootstrap::refuse_gaps(self.log, fold, self.whose, key.partition, last_offset).await?;
        self.log
            .execute(
                "-- consumer::elsewhere::note
                 UPDATE checkpoints SET last_offset = $3, told_token = $4 WHERE name = $1 AND partition = $2",
                &[&key.name, &key.partition, &last_offset, &token],
            )
            .await
            .context("noting how far the consumer is")?;
        Ok(())
    }
}

/// Refuses a log that does not have the records up to these places, each an offset and a token. A log that was told the very same place
/// has the records, also if it was adopted since, and its batches have other tokens. Returns the tokens of today.
async fn refuse_put_back(
    session: &impl Session,
    (whose, fold): (&Whose, FoldId),
    partitions: &[Partition],
    places: &[(i64, i64)],
    told: Option<&[(i64, i64)]>,
) -> Result<Vec<i64>> {
    let offsets: Vec<i64> = places.iter().map(|(offset, _)| *offset).collect();
    let found =
        pglog::tokens_at(session, partitions, &offsets).await.context("comparing the checkpoints with the log")?;
    let mut tokens = Vec::with_capacity(places.len());
    for (index, (partition, (offset, token))) in partitions.iter().zip(places).enumerate() {
        let (in_log, head) = found[index];
        let is_other = in_log.is_some_and(|in_log| *token != 0 && in_log != *token);
        let was_told = told.is_some_and(|told| told[index] == places[index]);
        let put_back = || Interruption::PutBack { whose: whose.clone(), fold, partition: *partition, offset: *offset };
        ensure!(*offset <= head && (!is_other || was_told), put_back());
        tokens.push(in_log.unwrap_or(*token));
    }
    Ok(tokens)
}

impl<F: Fold> Committers<'_, F> {
    /// Tells the log how far the states are, if they are elsewhere and it is time: then the reaper may go on.
    ///
    /// # Errors
    /// Postgres is away; [`Interruption::Unregistered`], [`Interruption::PutBack`].
    pub(super) async fn tell_log(&mut self, clock: &mut Clock, is_idle: bool) -> Result<()> {
        let places: Vec<(i64, i64)> =
            self.parts.iter().map(|part| (part.loaded().last_offset(), part.loaded().token)).collect();
        if !self.session.is_elsewhere() || !clock.is_time_to_tell(&places, is_idle) {
            return Ok(());
        }
        let partitions: Vec<Partition> = self.parts.iter().map(|part| part.key.partition).collect();
        refuse_put_back(&self.session.client, (self.whose, self.folds[0].id()), &partitions, &places, None).await?;
        let is_told = home::tell(&self.session.client, &self.whose.name, &partitions, &places).await?;
        ensure!(is_told, Interruption::Unregistered);
        clock.note_told(places);
        Ok(())
    }
}
