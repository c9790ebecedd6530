//! The phases of a booking, each by the recovery point at which it begins.

use deadpool_postgres::{ClientWrapper, Transaction};
use idempotency::{Claim, Phase, Phases, Progress};
use payments::{Charge, ChargeError};
use pglog::NewRecord;
use serde_json::{Value, json};
use tokio_postgres::error::SqlState;

use crate::desk::{Desk, DiePoint, Error, Order, Reply, User};
use crate::{AMOUNT_CENTS, CURRENCY};

/// The ride is there, and not paid for.
pub(crate) const RIDE_CREATED: &str = "ride_created";
/// It is paid for.
pub(crate) const CHARGE_CREATED: &str = "charge_created";

/// One booking, while it is driven.
pub(crate) struct Trip<'a> {
    pub desk: &'a Desk,
    pub user: &'a User,
    pub order: &'a Order,
}

/// What is read back of a booking that goes on.
struct Booked {
    ride_id: i64,
    distance_mm: i64,
    created_at: String,
    charge_key: String,
    amount_cents: i64,
    currency: String,
    stripe_customer_id: String,
}

impl Phases for Trip<'_> {
    type Error = Error;

    async fn next_phase(&self, claim: &mut Claim) -> Result<Progress, Error> {
        match claim.recovery_point.as_str() {
            idempotency::STARTED => {
                self.desk.pass(DiePoint::Started);
                self.create_ride(claim).await
            }
            RIDE_CREATED => {
                self.desk.pass(DiePoint::RideCreated);
                self.create_charge(claim).await
            }
            CHARGE_CREATED => {
                self.desk.pass(DiePoint::ChargeCreated);
                self.stage_receipt(claim).await
            }
            other => Err(Error::Bug(format!("Unhandled recovery point '{other}'."))),
        }
    }
}

impl Trip<'_> {
    async fn create_ride(&self, claim: &mut Claim) -> Result<Progress, Error> {
        let (operation_id, journey, distance_mm) = (claim.id, &self.order.journey, self.order.journey.distance_mm());
        let mut client = self.desk.client().await?;
        let phase = claim.begin(&mut client).await?;
        let statement = phase
            .tx()
            .prepare_cached(
                "-- booking::create_ride
                 WITH ride AS (INSERT INTO rides (distance_mm) VALUES ($1) RETURNING id)
                 INSERT INTO bookings (ride_id, user_id, operation_id, origin_lat, origin_lon, target_lat, target_lon,
                                       amount_cents, currency, stripe_customer_id)
                 SELECT id, $2::bigint, $3::bigint, $4::float8, $5::float8, $6::float8, $7::float8, $8::bigint, $9::text, $10::text
                 FROM ride
                 RETURNING ride_id",
            )
            .await?;
        let row = phase
            .tx()
            .query_one(
                &statement,
                &[
                    &distance_mm,
                    &self.user.id,
                    &operation_id,
                    &journey.origin_lat,
                    &journey.origin_lon,
                    &journey.target_lat,
                    &journey.target_lon,
                    &AMOUNT_CENTS,
                    &CURRENCY,
                    &self.user.stripe_customer_id,
                ],
            )
            .await?;
        let ride_id: i64 = row.get(0);
        // The same record as a guest's ride has: whoever folds distances need not know the difference.
        let data = format!(r#"{{"id":{ride_id},"distance_mm":{distance_mm}}}"#);
        let journey = json!(journey);
        // Sent together, here and below: each wait for an answer costs more than a statement.
        let (audited, staged) = tokio::join!(
            self.audit(phase.tx(), "ride.created", ride_id, &journey),
            self.stage(phase.tx(), "ride", "create", &data)
        );
        all_of([audited, staged])?;
        Ok(phase.advance(RIDE_CREATED).await?)
    }

    /// The only phase with a call to somebody else. While it lasts no transaction is open, and no connection in hand.
    async fn create_charge(&self, claim: &mut Claim) -> Result<Progress, Error> {
        let operation_id = claim.id;
        let booked = find(&*self.desk.client().await?, claim, RIDE_CREATED).await?;
        if self.order.raise_error {
            return Err(Error::Raised);
        }
        let charged = self
            .desk
            .stripe
            .charge(&Charge {
                amount_cents: booked.amount_cents,
                currency: &booked.currency,
                customer: &booked.stripe_customer_id,
                description: &format!("Charge for ride {}", booked.ride_id),
                idempotency_key: &booked.charge_key,
            })
            .await;
        let charged = match charged {
            Ok(charge_id) => Ok(charge_id),
            Err(ChargeError::Declined { message }) => Err(message),
            Err(error) => return Err(Error::Processor(error)),
        };
        self.desk.pass(DiePoint::Charged);
        let mut client = self.desk.client().await?;
        let phase = claim.begin(&mut client).await?;
        let ride_id = booked.ride_id;
        // The processor has answered for good: from here on nothing is asked that could charge again.
        let statement = phase
            .tx()
            .prepare_cached("-- booking::settle\nUPDATE tracked_operations SET expires_at = NULL WHERE id = $1")
            .await?;
        phase.tx().execute(&statement, &[&operation_id]).await?;
        match charged {
            Ok(charge_id) => {
                let statement = phase
                    .tx()
                    .prepare_cached(
                        "-- booking::create_charge
                         UPDATE bookings SET stripe_charge_id = $2 WHERE ride_id = $1 AND stripe_charge_id IS NULL",
                    )
                    .await?;
                let charge = json!({
                    "id": charge_id, "ride_id": ride_id, "user_id": self.user.id,
                    "amount": booked.amount_cents, "currency": booked.currency,
                });
                let noting = async {
                    match phase.tx().execute(&statement, &[&ride_id, &charge_id]).await? {
                        1 => Ok(()),
                        _ => Err(Error::Bug(format!("Ride {ride_id} is charged already."))),
                    }
                };
                let text = charge.to_string();
                let (noted, audited, staged) = tokio::join!(
                    noting,
                    self.audit(phase.tx(), "charge.created", ride_id, &charge),
                    self.stage(phase.tx(), "charge", "create", &text)
                );
                all_of([noted, audited, staged])?;
                Ok(phase.advance(CHARGE_CREATED).await?)
            }
            Err(message) => {
                let decline = json!({ "ride_id": ride_id, "user_id": self.user.id, "message": message });
                let text = decline.to_string();
                let (audited, staged) = tokio::join!(
                    self.audit(phase.tx(), "charge.declined", ride_id, &decline),
                    self.stage(phase.tx(), "charge", "decline", &text)
                );
                all_of([audited, staged])?;
                let error = format!("Error from payment processor: {message}");
                let body = json!({ "error": error, "code": "charge_declined" }).to_string();
                finish(phase, Reply { status: 402, body, is_replayed: false }).await
            }
        }
    }

    async fn stage_receipt(&self, claim: &mut Claim) -> Result<Progress, Error> {
        let mut client = self.desk.client().await?;
        let booked = find(&client, claim, CHARGE_CREATED).await?;
        let phase = claim.begin(&mut client).await?;
        let receipt = json!({
            "ride_id": booked.ride_id, "user_id": self.user.id,
            "amount": booked.amount_cents, "currency": booked.currency,
        });
        let text = receipt.to_string();
        let (audited, staged) = tokio::join!(
            self.audit(phase.tx(), "receipt.staged", booked.ride_id, &receipt),
            self.stage(phase.tx(), "receipt", "create", &text)
        );
        all_of([audited, staged])?;
        let body = json!({
            "message": "Payment accepted. Your pilot is on their way!",
            "ride": { "id": booked.ride_id, "distance_mm": booked.distance_mm, "created_at": booked.created_at },
        });
        finish(phase, Reply { status: 201, body: body.to_string(), is_replayed: false }).await
    }

    async fn audit(&self, tx: &Transaction<'_>, action: &str, ride_id: i64, data: &Value) -> Result<(), Error> {
        let statement = tx
            .prepare_cached(
                "-- booking::audit
                 INSERT INTO audit_records (action, data, origin_ip, resource_id, resource_type, user_id)
                 VALUES ($1, $2::text::jsonb, $3, $4, 'ride', $5)",
            )
            .await?;
        let (data, origin_ip) = (data.to_string(), self.order.origin_ip);
        tx.execute(&statement, &[&action, &data, &origin_ip, &ride_id, &self.user.id]).await?;
        Ok(())
    }

    async fn stage(&self, tx: &Transaction<'_>, object: &str, action: &str, data: &str) -> Result<(), Error> {
        let traceparent = self.order.traceparent.map(|traceparent| traceparent.to_string());
        pglog::stage(tx, NewRecord { object, action, data, traceparent: traceparent.as_deref() }).await?;
        Ok(())
    }
}

/// What came of statements that were sent together. After the one that failed the others only hear that one has: its error is
/// the one that counts.
fn all_of<const N: usize>(results: [Result<(), Error>; N]) -> Result<(), Error> {
    let is_aftermath = |error: &Error| {
        let Error::Operation(idempotency::Error::Postgres(error)) = error else { return false };
        error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION)
    };
    let mut errors: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
    errors.sort_by_key(is_aftermath);
    errors.into_iter().next().map_or(Ok(()), Err)
}

async fn finish(phase: Phase<'_>, reply: Reply) -> Result<Progress, Error> {
    let result = serde_json::to_vec(&reply).map_err(|error| Error::Bug(error.to_string()))?;
    Ok(phase.finish(result).await?)
}

/// The ride that an earlier phase has made.
async fn find(client: &ClientWrapper, claim: &Claim, recovery_point: &str) -> Result<Booked, Error> {
    let statement = client
        .prepare_cached(
            "-- booking::find
             SELECT ride_id, distance_mm, charge_key::text, amount_cents, currency, stripe_customer_id,
                    to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS created_at
             FROM bookings JOIN rides ON rides.id = ride_id WHERE operation_id = $1",
        )
        .await?;
    let row = client.query_opt(&statement, &[&claim.id]).await?;
    let row = row.ok_or_else(|| Error::Bug(format!("Should have ride for key at {recovery_point}.")))?;
    Ok(Booked {
        ride_id: row.get("ride_id"),
        distance_mm: row.get("distance_mm"),
        created_at: row.get("created_at"),
        charge_key: row.get("charge_key"),
        amount_cents: row.get("amount_cents"),
        currency: row.get("currency"),
        stripe_customer_id: row.get("stripe_customer_id"),
    })
}
