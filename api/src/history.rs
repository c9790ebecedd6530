//! `GET /history`: the archive of every record, page by page or live.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::{ACCEPT, VARY};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::app::App;
use crate::error::Error;
use crate::history_page::{self, HistoryPage, Selection};
use crate::history_stream;
use crate::parameters::HistoryHeaders;
use crate::paths::HISTORY;
use crate::query::whole_number;
use crate::responses::HistoryErrors;

/// The records of a page, unless the client asks for another number.
const PAGE_LEN_DEFAULT: i64 = 100;
/// The most records a page may have.
const PAGE_LEN_MAX: i64 = 1000;

/// The longest name of an object or an action, in characters, as in table `staged_log_records`.
const NAME_LEN_MAX: usize = 100;

/// The header in which a browser sends the id of the last event that it has received, when it reconnects.
const LAST_EVENT_ID: &str = "last-event-id";

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct HistoryQuery {
    /// The offset before the first record: `next_after` of the page before. A page begins at 0 without it; a stream
    /// begins with the next record that is archived.
    #[param(value_type = Option<i64>, minimum = 0)]
    after: Option<String>,
    /// Only records of this object.
    #[param(min_length = 1, max_length = 100, pattern = r"^[^\u0000]+$")]
    object: Option<String>,
    /// Only records of this action.
    #[param(min_length = 1, max_length = 100, pattern = r"^[^\u0000]+$")]
    action: Option<String>,
    /// Records per page. A stream ignores it.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<String>,
    /// The partition of the log. Each has a history of its own, with its own offsets.
    #[param(value_type = Option<i32>, minimum = 0, default = 0)]
    partition: Option<String>,
}

/// A request that was read.
#[derive(Debug, PartialEq, Eq)]
struct HistoryRequest {
    selection: Selection,
    after: Option<i64>,
    limit: i64,
}

/// The history of a partition in the order of offsets, page by page or live.
///
/// A page never reads over a hole: it ends before the hole, and the next request is answered with 410, which names the
/// missing records and the `after` with which reading goes on. A page passes at most 10000 offsets and ends early if its
/// data are large, so it may have fewer records than `limit`, or none. Go on with `next_after`. The end is reached when
/// `next_after` equals the `after` of the request. The history is empty until a consumer archives the log.
///
/// `Accept: text/event-stream` gives the same as server-sent events, and goes on with each new record. The event `record`
/// has a record as its data, the event `gap` has the range of a hole: `{"partition":0,"first":8,"last":19}`. The id of an
/// event is its last offset.
#[utoipa::path(
    get, path = HISTORY, operation_id = "show_history", tag = "history", params(HistoryQuery, HistoryHeaders),
    responses(
        (
            status = 200, description = "A page, or a stream of events",
            content((HistoryPage = "application/json"), (String = "text/event-stream"))
        ),
        HistoryErrors
    )
)]
pub(crate) async fn show_history(
    State(app): State<App>,
    headers: HeaderMap,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Response, Error> {
    let Query(query) = query.map_err(|_| Error::Malformed("The query string is malformed.".to_owned()))?;
    let HistoryRequest { selection, after, limit } = HistoryRequest::read(&headers, query)?;
    let mut response = if wants_events(&headers) {
        history_stream::watch(&app, selection, after).await?
    } else {
        Json(history_page::read(&app.database, &selection, after.unwrap_or(0), limit).await?).into_response()
    };
    response.headers_mut().append(VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

impl HistoryRequest {
    /// `Last-Event-ID` wins over `after`: a browser that reconnects sends the address that it was given first.
    fn read(headers: &HeaderMap, query: HistoryQuery) -> Result<Self, Error> {
        let event_id = headers.get(LAST_EVENT_ID).map(|id| id.to_str().unwrap_or(""));
        let event_id = whole_number("Last-Event-ID", event_id, 0, i64::MAX, "the id of an event")?;
        let after = whole_number("after", query.after.as_deref(), 0, i64::MAX, "an offset, or 0 for the beginning")?;
        let wanted = "a whole number between 1 and 1000";
        let limit = whole_number("limit", query.limit.as_deref(), 1, PAGE_LEN_MAX, wanted)?;
        let wanted = "the number of a partition: 0, unless the log has several";
        let partition = whole_number("partition", query.partition.as_deref(), 0, i32::MAX.into(), wanted)?;
        let selection = Selection {
            partition: i32::try_from(partition.unwrap_or(0)).map_err(|_| Error::Internal)?,
            object: name("object", query.object)?,
            action: name("action", query.action)?,
        };
        Ok(Self { selection, after: event_id.or(after), limit: limit.unwrap_or(PAGE_LEN_DEFAULT) })
    }
}

/// A name to filter by. Postgres refuses a text with NUL.
fn name(parameter: &'static str, text: Option<String>) -> Result<Option<String>, Error> {
    let is_name = |text: &str| (1..=NAME_LEN_MAX).contains(&text.chars().count()) && !text.contains('\0');
    if text.as_deref().is_none_or(is_name) {
        return Ok(text);
    }
    Err(Error::Parameter { name: parameter, wanted: "1 to 100 characters, none of them NUL" })
}

/// Whether the client asks for server-sent events, as browsers do for an `EventSource`.
fn wants_events(headers: &HeaderMap) -> bool {
    let types = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut types = types.flat_map(|value| value.split(',')).map(|name| name.split(';').next().unwrap_or("").trim());
    types.any(|name| name.eq_ignore_ascii_case("text/event-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&'static str, &'static str)], query: &str) -> Result<HistoryRequest, Error> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        HistoryRequest::read(&headers, serde_urlencoded::from_str(query).unwrap())
    }

    #[test]
    fn a_request_selects_records() {
        let all = Selection { partition: 0, object: None, action: None };
        assert_eq!(read(&[], ""), Ok(HistoryRequest { selection: all.clone(), after: None, limit: 100 }));
        let some = Selection { partition: 3, object: Some("ride".to_owned()), action: Some("create".to_owned()) };
        let request = read(&[], "partition=3&object=ride&action=create&after=7&limit=1000&unknown=1");
        assert_eq!(request, Ok(HistoryRequest { selection: some, after: Some(7), limit: 1000 }));
        let request = read(&[(LAST_EVENT_ID, "9")], "after=7");
        assert_eq!(request, Ok(HistoryRequest { selection: all, after: Some(9), limit: 100 }));
    }

    #[test]
    fn a_bad_parameter_is_named() {
        let long = format!("object={}", "ä".repeat(101));
        for (query, wanted_name) in [
            ("after=-1", "after"),
            ("after=x", "after"),
            ("after=9223372036854775808", "after"),
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("partition=2147483648", "partition"),
            ("partition=", "partition"),
            ("object=", "object"),
            ("action=a%00b", "action"),
            (&long, "object"),
        ] {
            match read(&[], query) {
                Err(Error::Parameter { name, .. }) => assert_eq!(name, wanted_name, "{query}"),
                other => panic!("{query}: {other:?}"),
            }
        }
        assert!(read(&[], &long.replacen('ä', "", 1)).is_ok());
        assert!(read(&[(LAST_EVENT_ID, "x")], "after=1").is_err());
    }

    #[test]
    fn events_are_for_clients_that_ask_for_them() {
        for (accept, wants) in [
            ("text/event-stream", true),
            ("text/html, Text/Event-Stream;q=0.9", true),
            ("*/*", false),
            ("application/json", false),
            ("text/event-streams", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(wants_events(&headers), wants, "{accept}");
        }
        assert!(!wants_events(&HeaderMap::new()));
    }
}
