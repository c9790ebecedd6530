//! The board is built again when Redis has forgotten.
//!
//! ```text
//! Redis has another run id than the board ─▶ the attempts in flight are noted
//!    ─▶ the newest committed document of each subject, out of the table of `rows` ─▶ what was undone
//!    ─▶ each noted attempt, as soon as it has ended ─▶ the board is marked as built
//! ```
//!
//! An attempt that begins later stores in the Redis that is there now. An attempt that was in flight may have stored before the
//! loss, and its document is in no table yet: so the rebuild waits for its verdict. Any number of processes may do it at once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::{Stream, TryStreamExt, stream};
use process::{Failure, Turn, Work};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::board::{Board, Past};
use crate::declaration::{Declaration, Kind};
use crate::hand::Hand;
use crate::units::{self, PAST_LEN};

/// How often to ask Redis whether it has forgotten.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How often to look at attempts in flight.
const FLIGHT_INTERVAL: Duration = Duration::from_millis(200);

/// Looks after one board, again and again.
pub(crate) struct Rebuilding {
    hand: Hand,
    name: String,
    board: Arc<Board>,
    tables: Vec<Table>,
}

/// A table with committed documents.
#[derive(Debug, Clone)]
struct Table {
    name: String,
    /// New units with a row there have a part in the board.
    is_current: bool,
}

impl Work for Rebuilding {
    type Fault = ();

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        if let Some(lost) = self.board.is_lost().await? {
            warn!(destination = self.name, "Redis may have forgotten parts of the board: it is built again");
            self.board.rebuild(lost, self.past()).await?;
            info!(destination = self.name, "the board is built");
        }
        Ok(Turn::done().pausing(LOOK_INTERVAL))
    }
}

impl Rebuilding {
    /// Looks after the board of this name.
    pub fn new(hand: Hand, declaration: &Declaration, name: String, board: Arc<Board>) -> Self {
        let mut tables: Vec<Table> = Vec::new();
        for (rows, declared) in &declaration.destinations {
            let Kind::Rows { table } = &declared.kind else { continue };
            let mut resources = declaration.resources.iter().map(|resource| &resource.destinations);
            let is_current = resources.any(|names| names.contains(rows) && names.contains(&name));
            tables.push(Table { name: table.clone(), is_current });
        }
        Self { hand, name, board, tables }
    }

    /// All that the board has to know.
    fn past(&self) -> impl Stream<Item = Result<Past>> {
        let reading = Reading { of: self, at: At::Begin, in_flight: Vec::new() };
        let pages = stream::try_unfold(reading, Reading::next);
        pages.map_ok(|page| stream::iter(page.into_iter().map(Ok))).try_flatten()
    }
}

/// How far the past is read.
struct Reading<'a> {
    of: &'a Rebuilding,
    at: At,
    in_flight: Vec<(i64, i32)>,
}

enum At {
    Begin,
    /// In the table with this index, after this subject.
    Table(usize, String),
    /// After this unit.
    Undone(i64),
    InFlight,
}

impl Reading<'_> {
    async fn next(mut self) -> Result<Option<(Vec<Past>, Self)>> {
        let page = match &self.at {
            At::Begin => {
                self.in_flight = units::in_flight(&*self.of.hand.client().await?, &self.of.name).await?;
                self.at = At::Table(0, String::new());
                Vec::new()
            }
            At::Table(index, after) => match self.of.tables.get(*index) {
                None => {
                    self.at = At::Undone(0);
                    Vec::new()
                }
                Some(Table { name, is_current }) => {
                    let client = self.of.hand.client().await?;
                    let page = units::committed(&client, name, &self.of.name, *is_current, after).await?;
                    self.at = match page.last() {
                        Some(last) if page.len() == PAST_LEN => At::Table(*index, last.subject.clone()),
                        _ => At::Table(index + 1, String::new()),
                    };
                    page
                }
            },
            At::Undone(after) => {
                let (page, last) = units::undone(&*self.of.hand.client().await?, &self.of.name, *after).await?;
                self.at = last.map_or(At::InFlight, At::Undone);
                page
            }
            At::InFlight if self.in_flight.is_empty() => return Ok(None),
            At::InFlight => self.ended().await?,
        };
        Ok(Some((page, self)))
    }

    /// The attempts that have ended meanwhile. They are looked for no more.
    async fn ended(&mut self) -> Result<Vec<Past>> {
        let client = self.of.hand.client().await?;
        let ended = units::ended(&client, &self.in_flight).await?;
        if ended.is_empty() {
            drop(client);
            sleep(FLIGHT_INTERVAL).await;
            return Ok(Vec::new());
        }
        self.in_flight.retain(|flight| ended.iter().all(|ended| (ended.uow, ended.attempt) != *flight));
        let (committed, undone): (Vec<_>, Vec<_>) = ended.into_iter().partition(|ended| ended.is_committed);
        let uows: Vec<i64> = committed.iter().map(|ended| ended.uow).collect();
        let mut page: Vec<Past> = undone
            .into_iter()
            .map(|units::Ended { uow, attempt, key, subject, .. }| Past { uow, key, attempt, subject, document: None })
            .collect();
        for table in &self.of.tables {
            page.extend(units::committed_rows(&client, &table.name, &uows).await?);
        }
        Ok(page)
    }
}
