//! The history as server-sent events. Each client's stream reads pages by itself, and reads the next page only after the
//! connection has taken the events of the page before. So a slow client holds one page in memory, and no statement.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::time::sleep;

use crate::app::App;
use crate::database::Database;
use crate::error::Error;
use crate::history_page::{self, HistoryPage, Selection};

/// The most records of a page.
const PAGE_LEN: i64 = 1000;

/// How long a stream waits before it looks for new records.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A stream that has passed as many offsets by one page reads on at once. So a stream reads four times a second, or it
/// reads many records per statement.
const BACKLOG_LEN_MIN: i64 = 100;

/// How long a stream waits while Postgres is away. It does not end: a browser that reconnected would be refused with 503,
/// and would then give up.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// How long a connection may be silent. Proxies close silent connections, mostly after 60 s.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// The data of the event `gap`: the history lacks these records.
#[derive(Serialize)]
struct Gap {
    partition: i32,
    first: i64,
    last: i64,
}

/// Streams the records that follow the offset `after`; `None`: those that are archived from now on. The stream ends at
/// shutdown.
///
/// # Errors
/// [`Error::TooManyWatchers`], and those of [`history_page::newest_offset`].
pub(crate) async fn watch(app: &App, selection: Selection, after: Option<i64>) -> Result<Response, Error> {
    let place = Arc::clone(&app.watchers).try_acquire_owned().map_err(|_| Error::TooManyWatchers)?;
    let after = match (after, history_page::newest_offset(&app.database, selection.partition).await) {
        (_, Err(error @ Error::PartitionUnknown(_))) => return Err(error),
        // Postgres may be away: a client that reconnects waits here.
        (Some(after), _) => after,
        (None, newest) => newest?,
    };
    // A client that reconnects before the first record then goes on from here.
    let beginning = stream::iter([Event::default().id(after.to_string())]);
    let watcher = Watcher { database: app.database.clone(), selection, after, pause: Duration::ZERO };
    let pages = stream::unfold(watcher, async |mut watcher| {
        let events = watcher.next_events().await?;
        Some((stream::iter(events), watcher))
    });
    let events = beginning.chain(pages.flatten()).map(move |event| {
        let _place = &place;
        Ok::<_, Infallible>(event)
    });
    // The server stops when all responses have ended, so this one must end at shutdown.
    let events = events.take_until(app.shutdown.clone().cancelled_owned());
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE_INTERVAL)).into_response())
}

/// One stream's place in the history.
struct Watcher {
    database: Database,
    selection: Selection,
    /// The last offset that the stream has passed.
    after: i64,
    /// How long to wait before the next page.
    pause: Duration,
}

impl Watcher {
    /// The events of the next page. There may be none. `None`: the stream cannot go on.
    async fn next_events(&mut self) -> Option<Vec<Event>> {
        sleep(self.pause).await;
        match history_page::read(&self.database, &self.selection, self.after, PAGE_LEN).await {
            Ok(page) => {
                let is_behind = page.next_after - self.after >= BACKLOG_LEN_MIN;
                self.pause = if is_behind { Duration::ZERO } else { POLL_INTERVAL };
                let events = events(&page, self.after);
                self.after = page.next_after;
                Some(events)
            }
            Err(Error::RecordsMissing { first, last }) => {
                self.pause = Duration::ZERO;
                self.after = last;
                Some(vec![event("gap", last, &Gap { partition: self.selection.partition, first, last })])
            }
            Err(Error::Unavailable | Error::Overloaded) => {
                self.pause = RETRY_INTERVAL;
                Some(Vec::new())
            }
            Err(_) => None,
        }
    }
}

/// The events of the page that follows the offset `after`.
fn events(page: &HistoryPage, after: i64) -> Vec<Event> {
    let mut events: Vec<Event> = page.records.iter().map(|record| event("record", record.offset, record)).collect();
    // An id without data: a client that reconnects does not scan again what its filters have left out.
    if page.next_after > page.records.last().map_or(after, |record| record.offset) {
        events.push(Event::default().id(page.next_after.to_string()));
    }
    events
}

/// An event. Its id is the last offset that it tells of, from which a client that reconnects goes on.
fn event(name: &str, last_offset: i64, data: &impl Serialize) -> Event {
    // Texts, numbers and JSON, which JSON can always hold.
    Event::default().event(name).id(last_offset.to_string()).json_data(data).unwrap_or_default()
}
