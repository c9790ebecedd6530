//! A ride, as it is stored and as it is shown.

use jiff::Timestamp;
use serde::Serialize;
use tokio_postgres::Row;
use utoipa::ToSchema;

/// A ride, as it is stored and as it is shown: `{"id":1,"distance_mm":123000,"created_at":"2026-01-01T00:00:00Z"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Ride {
    /// Ids grow, but do not commit in order.
    pub id: i64,
    /// Whole millimetres.
    pub distance_mm: i64,
    /// When its transaction began, on Postgres's clock.
    pub created_at: Timestamp,
}

impl Ride {
    /// Reads the columns `id, distance_mm, created_at`.
    pub(crate) fn from_row(row: &Row) -> Self {
        Self { id: row.get("id"), distance_mm: row.get("distance_mm"), created_at: row.get("created_at") }
    }
}
