//! `GET /totals`: SQL's own count and sum beside each consumer's. All figures come from one snapshot, so they can be
//! compared.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::app::App;
use crate::error::Error;
use crate::paths::TOTALS;
use crate::reading::Totals;
use crate::responses::TotalsErrors;

/// The parameters of `GET /totals`.
#[derive(Debug, PartialEq, Eq, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct TotalsQuery {
    /// `partition`: each consumer's total per partition, and each partition's head.
    by: Option<By>,
}

/// How the totals are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum By {
    Partition,
}

/// SQL's count and sum beside every consumer's.
///
/// One total per consumer: the sum over the partitions of the log.
/// All of one snapshot, so the figures can be compared. The header `Age` tells how many seconds ago they were read. A new
/// reading is waited for, unless a large table makes it take long: then the figures are at most some twenty times as old as a
/// reading takes.
#[utoipa::path(
    get, path = TOTALS, operation_id = "show_totals", tag = "state", params(TotalsQuery),
    responses(
        (
            status = 200, description = "The totals", body = Totals,
            headers(("Age" = i64, description = "Seconds since the figures were read"))
        ),
        TotalsErrors
    )
)]
pub(crate) async fn show_totals(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response, Error> {
    let query = TotalsQuery::read(query.as_deref().unwrap_or(""))?;
    let figure = app.totals.recent().await.ok_or(Error::Internal)?;
    let age = [(header::AGE, HeaderValue::from(figure.age().as_secs()))];
    let reading = figure.result?;
    let totals = match query.by {
        Some(By::Partition) => reading.by_partition(),
        None => reading.summed(),
    };
    Ok((age, Json(totals)).into_response())
}

impl TotalsQuery {
    /// A parameter that is not known is refused: a client that misspells one would take the sum for its part.
    fn read(query: &str) -> Result<Self, Error> {
        let malformed = |_| Error::Malformed("The query string is malformed.".to_owned());
        let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query).map_err(malformed)?;
        let mut read = Self { by: None };
        for (name, value) in pairs {
            match (name.as_str(), value.as_str()) {
                ("by", "partition") => read.by = Some(By::Partition),
                ("by", _) => return Err(Error::Parameter { name: "by", wanted: "'partition', or left out" }),
                _ => return Err(Error::ParameterUnknown { known: "'by'" }),
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_by_partition_or_nothing() {
        assert_eq!(TotalsQuery::read(""), Ok(TotalsQuery { by: None }));
        assert_eq!(TotalsQuery::read("by=partition"), Ok(TotalsQuery { by: Some(By::Partition) }));
        for (query, code, words) in [
            ("by=consumer", "parameter_invalid", "Parameter 'by' must be 'partition', or left out."),
            ("by=", "parameter_invalid", "'partition'"),
            ("by", "parameter_invalid", "'partition'"),
            ("partition=3", "parameter_unknown", "here is only 'by'."),
            ("by=partition&x=1", "parameter_unknown", "here is only 'by'."),
        ] {
            let error = TotalsQuery::read(query).unwrap_err();
            assert_eq!((error.code(), error.status().as_u16()), (code, 422), "{query}");
            assert!(error.to_string().contains(words), "{query}: {error}");
        }
    }
}
