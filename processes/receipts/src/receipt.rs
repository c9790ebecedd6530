//! A receipt, as it is kept in table `receipts` and as it is delivered.

use anyhow::Context;
use deadpool_postgres::ClientWrapper as Client;
use serde::Deserialize;

use crate::refusal::Refusal;

/// A row of table `receipts`. The payload is read one receipt at a time, so that a strange payload stops no other receipt.
pub(crate) struct Kept {
    pub ride_id: i64,
    /// This attempt included. It also says whether the lease is still ours: each take raises it.
    pub attempt_count: i32,
    /// Random, and the same for each attempt. No other installation gives a receipt this id.
    pub message_id: String,
    pub data: String,
}

/// A receipt that is to be delivered.
pub(crate) struct Receipt {
    pub ride_id: i64,
    pub message_id: String,
    pub email: String,
    pub amount_cents: i64,
    pub currency: String,
}

#[derive(Deserialize)]
struct Data {
    user_id: i64,
    amount: i64,
    currency: String,
}

impl Receipt {
    /// Reads the payload, and looks up the user's address.
    ///
    /// # Errors
    /// The payload is no receipt, or the user is unknown: permanent. Postgres is away: passing.
    pub(crate) async fn read(client: &Client, kept: &Kept) -> Result<Self, Refusal> {
        let data: Data =
            serde_json::from_str(&kept.data).context("the payload is no receipt").map_err(Refusal::permanent)?;
        let row = client
            .query_opt("-- receipts::email\nSELECT email FROM users WHERE id = $1", &[&data.user_id])
            .await
            .context("looking up the user")
            .map_err(Refusal::passing)?;
        let email = row.with_context(|| format!("user {} is unknown", data.user_id)).map_err(Refusal::permanent)?;
        Ok(Self {
            ride_id: kept.ride_id,
            message_id: kept.message_id.clone(),
            email: email.get(0),
            amount_cents: data.amount,
            currency: data.currency,
        })
    }
}
