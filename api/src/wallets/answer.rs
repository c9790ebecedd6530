//! The responses of wallets: JSON, indented by four spaces. Money is a number with two places and never a float.

use std::io::Write;

use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::ser::PrettyFormatter;
use serde_json::value::RawValue;
use utoipa::openapi::schema::ObjectBuilder;
use utoipa::openapi::{RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};
use wallet::decimal;

/// Where a read came from.
pub(crate) const READ_FROM: HeaderName = HeaderName::from_static("read-from");

/// The space for the body of a small response, in bytes. It fits in, so it is never copied.
const SMALL_LEN: usize = 256;

/// Cents, shown as a decimal with two places: `5.00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Money(pub i64);

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(decimal(self.0)).map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl PartialSchema for Money {
    fn schema() -> RefOr<Schema> {
        let about = "Money: a decimal with two places. Negative if it takes money from the wallet.";
        RefOr::T(ObjectBuilder::new().schema_type(Type::Number).description(Some(about)).examples([5.0]).build().into())
    }
}

impl ToSchema for Money {}

/// The response 201 of `POST /wallets`.
#[derive(Serialize, ToSchema)]
pub(crate) struct NewWallet {
    /// A new KSUID.
    #[schema(example = "28skwt5B8zTrs6AqBWrSgCHLcRL")]
    pub id: String,
}

/// The response 200 of a credit, a debit or a transfer.
#[derive(Serialize, ToSchema)]
pub(crate) struct Handled {
    /// `true`.
    pub success: bool,
    /// For people.
    #[schema(example = "handled endpoint=\"credit\"")]
    pub detail: String,
    /// The version of the wallet after the event. Read with `min_version` to see it for certain.
    pub version: i64,
    /// The balance of the wallet after the event.
    pub balance: Money,
    /// The event, as table `wallet_events` has it.
    #[schema(example = "29p8aA0XrY2slsqmEyNzBlS7f64")]
    pub event_id: String,
}

/// A wallet.
#[derive(Serialize, ToSchema)]
pub(crate) struct Shown {
    /// When the wallet changed last. A wallet that never changed has the time of the response.
    #[serde(serialize_with = "to_the_microsecond")]
    pub timestamp: Timestamp,
    /// Its KSUID.
    #[schema(example = "28skwt5B8zTrs6AqBWrSgCHLcRL")]
    pub id: String,
    pub balance: Money,
    /// The number of accepted events.
    pub version: i64,
}

/// The balance of a wallet.
#[derive(Serialize, ToSchema)]
pub(crate) struct Balance {
    /// When the wallet changed last. A wallet that never changed has the time of the response.
    #[serde(serialize_with = "to_the_microsecond")]
    pub timestamp: Timestamp,
    pub balance: Money,
    /// The number of accepted events.
    pub version: i64,
}

/// A page of transactions, newest first.
#[derive(Serialize, ToSchema)]
pub(crate) struct TransactionPage {
    /// When the wallet changed last. A wallet that never changed has the time of the response.
    #[serde(serialize_with = "to_the_microsecond")]
    pub timestamp: Timestamp,
    pub transactions: Vec<Transaction>,
    /// The next page's `before`. `null`: this is the last page.
    pub next_before: Option<i64>,
}

/// An accepted event of a wallet.
#[derive(Serialize, ToSchema)]
pub(crate) struct Transaction {
    /// When it was accepted.
    #[serde(serialize_with = "to_the_microsecond")]
    pub timestamp: Timestamp,
    /// The other wallet of a transfer. `world` for a credit or a debit.
    pub source_entity_id: String,
    pub amount: Money,
    /// The version of the wallet after it.
    pub version: i64,
    /// The event, as table `wallet_events` has it.
    pub event_id: String,
}

/// As the read model writes a time.
fn to_the_microsecond<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}

/// A response with this body.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let mut text = Vec::with_capacity(SMALL_LEN);
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"    "));
    match body.serialize(&mut serializer) {
        Ok(()) => whole(status, text),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// As [`json`] with status 200, for the body that is asked for thousands of times a second: it is written straight into the
/// response.
pub(crate) fn balance(balance: &Balance) -> Response {
    let Balance { timestamp, balance: Money(minor), version } = balance;
    // A balance is never below 0 (W3).
    let (whole_units, cents) = (minor / 100, minor % 100);
    let mut text = Vec::with_capacity(SMALL_LEN);
    let written = write!(
        text,
        "{{\n    \"timestamp\": \"{timestamp:.6}\",\n    \"balance\": {whole_units}.{cents:02},\n    \"version\": {version}\n}}"
    );
    match written {
        Ok(()) => whole(StatusCode::OK, text),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn whole(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use wallet::BALANCE_MAX;

    use super::*;

    async fn text(response: Response) -> String {
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        String::from_utf8(to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_balance_is_written_by_hand_as_serde_would_write_it() {
        for (timestamp, minor, version) in [
            ("2026-11-21T08:19:04.063791Z", 0, 0),
            ("2026-11-21T08:19:04Z", 5, 1),
            ("1969-12-31T23:59:59.9Z", 1_250, 7),
            ("2026-11-21T08:19:04.5Z", BALANCE_MAX, i64::MAX),
        ] {
            let shown = Balance { timestamp: timestamp.parse().unwrap(), balance: Money(minor), version };
            let by_hand = text(balance(&shown)).await;
            assert_eq!(by_hand, text(json(StatusCode::OK, &shown)).await);
            assert!(by_hand.len() <= SMALL_LEN, "{by_hand}");
        }
    }

    #[tokio::test]
    async fn money_is_a_number_with_two_places() {
        for (minor, shown) in [(500, "5.00"), (-500, "-5.00"), (-5, "-0.05"), (BALANCE_MAX, "90071992547409.91")] {
            assert_eq!(text(json(StatusCode::OK, &[Money(minor)])).await, format!("[\n    {shown}\n]"));
        }
    }
}
