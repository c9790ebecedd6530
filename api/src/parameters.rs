//! The body and the headers of `POST /rides`, and the headers of `GET /history`, for the description only. Bodies are read
//! into [`Params`](crate::body::Params), which accepts more spellings of a number than can be described.
#![expect(dead_code, reason = "only their derived descriptions are used")]

use std::borrow::Cow;

use serde_json::json;
use utoipa::openapi::schema::{AnyOfBuilder, ObjectBuilder, OneOfBuilder};
use utoipa::openapi::{Ref, RefOr, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

/// The described headers. `Authorization` is described as a security scheme.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(crate) struct BookingHeaders {
    /// A booked ride's key: a value that no other ride uses. In quotes it is the same key.
    #[param(rename = "Idempotency-Key", min_length = 20, max_length = 255, pattern = "^[!#-~][!-~]*$")]
    idempotency_key: Option<String>,
}

/// The headers of `GET /history`.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(crate) struct HistoryHeaders {
    /// The id of the last event. It wins over `after`. Browsers send it when they reconnect.
    #[param(rename = "Last-Event-ID", value_type = String, required = false, pattern = "^[0-9]{1,18}$")]
    last_event_id: Option<String>,
}

/// The body of `POST /rides`: a guest's ride or a booked one.
pub(crate) struct RideBody;

impl PartialSchema for RideBody {
    fn schema() -> RefOr<Schema> {
        let either =
            AnyOfBuilder::new().item(Ref::from_schema_name("GuestRide")).item(Ref::from_schema_name("BookedRide"));
        RefOr::T(either.build().into())
    }
}

impl ToSchema for RideBody {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("NewRide")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((GuestRide::name().into_owned(), GuestRide::schema()));
        schemas.push((BookedRide::name().into_owned(), BookedRide::schema()));
    }
}

/// A guest's ride.
#[derive(ToSchema)]
#[schema(example = json!({ "distance": 123.0 }))]
pub(crate) struct GuestRide {
    #[schema(schema_with = metres)]
    distance: f64,
}

/// A booked ride: it needs `Authorization` and `Idempotency-Key`, too. Degrees, from where to where.
#[derive(ToSchema)]
#[schema(example = json!({ "origin_lat": 52.52, "origin_lon": 13.405, "target_lat": 48.8566, "target_lon": 2.3522 }))]
pub(crate) struct BookedRide {
    #[schema(minimum = -90, maximum = 90)]
    origin_lat: f64,
    #[schema(minimum = -180, maximum = 180)]
    origin_lon: f64,
    #[schema(minimum = -90, maximum = 90)]
    target_lat: f64,
    #[schema(minimum = -180, maximum = 180)]
    target_lon: f64,
    /// For tests: `true` makes the booking fail before its charge.
    raise_error: Option<bool>,
}

/// A distance that, rounded half up, is at least one millimetre and at most 10^9 m.
fn metres() -> RefOr<Schema> {
    let number = ObjectBuilder::new()
        .schema_type(Type::Number)
        .minimum(Some(0.0005))
        .exclusive_maximum(Some(1_000_000_000.000_5))
        .build();
    let text = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(r"^[1-9][0-9]{0,8}(\.[0-9]{1,9})?$"))
        .description(Some("Other spellings of a number are understood as well: 1e3, 0x1A, 1_000."))
        .build();
    let about = "In metres. Rounded to the millimetre, half up; from 0.001 to 1000000000.";
    let either = OneOfBuilder::new().item(number).item(text).description(Some(about)).examples([json!(123.0)]);
    RefOr::T(either.build().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Params;

    #[test]
    fn every_described_parameter_is_read() {
        for schema in [GuestRide::schema(), BookedRide::schema()] {
            let schema = serde_json::to_value(&schema).unwrap();
            let names = schema["properties"].as_object().unwrap().keys();
            for name in names {
                let form = format!("{name}=1");
                let params: Params<String> = serde_urlencoded::from_str(&form).unwrap();
                assert!(format!("{params:?}").contains("Some"), "{name}: {params:?}");
            }
        }
    }
}
