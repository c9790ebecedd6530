//! The phases of a booking, each by the recovery point at which it begins.

use std::time::Duration;

use deadpool_postgres::Transaction;
use idempotency::{Claim, Phase, PhaseEnd, Phases};
use pglog::{NewRecord, Session};
use serde_json::{Value, json};
use tokio_postgres::error::SqlState;

use crate::charging::{Bill, Declined, settle};
use crate::desk::{Desk, DiePoint};
use crate::error::Error;
use crate::order::{AMOUNT_CENTS, CURRENCY, Order, Payload, Reply, User};

/// The ride is written, and not paid for.
pub(crate) const RIDE_CREATED: &str = "ride_created";
/// The ride is paid for.
pub(crate) const CHARGE_CREATED: &str = "charge_created";

/// A booking while it is driven from phase to phase.
pub(crate) struct Trip<'a> {
    pub desk: &'a Desk,
    pub user: &'a User,
    pub order: &'a Order,
}

/// The rows that an earlier phase of the booking has written.
struct Booked {
    ride_id: i64,
    distance_mm: i64,
    created_at: String,
    bill: Bill,
}

impl Phases for Trip<'_> {
    type Error = Error;

    fn is_same(&self, stored: &[u8], asked: &[u8]) -> bool {
        Payload::is_same(stored, asked)
    }

    async fn next_phase(&self, claim: &mut Claim) -> Result<PhaseEnd, Error> {
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
    async fn create_ride(&self, claim: &mut Claim) -> Result<PhaseEnd, Error> {
        let (operation_id, claim_key) = (claim.id, claim.key.clone());
        let (journey, distance_mm) = (&self.order.journey, self.order.journey.distance_mm());
        let mut client = self.desk.client().await?;
        let phase = claim.begin(&mut client).await?;
        let row = phase
            .tx()
            .query_one(
                "-- booking::create_ride
                 WITH ride AS (INSERT INTO rides (distance_mm) VALUES ($1) RETURNING id),
                 keyed AS MATERIALIZED (
                     SELECT id, derive_charge_key($2, $11, ARRAY[$4, $5, $6, $7]::float8[]) AS charge_key FROM ride)
                 INSERT INTO bookings (ride_id, user_id, operation_id, origin_lat, origin_lon, target_lat, target_lon,
                                       amount_cents, currency, stripe_customer_id, charge_key, charge_form)
                 SELECT id, $2::bigint, $3::bigint, $4::float8, $5::float8, $6::float8, $7::float8, $8::bigint, $9::text,
                        $10::text, charge_key,
                        json_build_object(
                            'amount', $8::text, 'currency', $9, 'customer', $10, 'description', 'Charge for ride ' || id,
                            'metadata[charge_key]', charge_key, 'metadata[installation]', installation_id(),
                            'metadata[ride_id]', id::text)
                 FROM keyed
                 RETURNING ride_id",
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
                    &claim_key,
                ],
            )
            .await?;
        let ride_id: i64 = row.get(0);
        // The same record as for a guest's ride, so that consumers need not know the difference.
        let data = format!(r#"{{"id":{ride_id},"distance_mm":{distance_mm}}}"#);
        let journey = json!(journey);
        // These statements are sent together, here and below: waiting for each result costs more than the statement.
        let (audited, staged) = tokio::join!(
            self.audit(phase.tx(), "ride.created", ride_id, &journey),
            self.stage(phase.tx(), ride_id, "ride", "create", &data)
        );
        all_of([audited, staged])?;
        Ok(phase.advance(RIDE_CREATED).await?)
    }

    /// The only phase that calls another server. Meanwhile no transaction is open, and no connection is held.
    async fn create_charge(&self, claim: &mut Claim) -> Result<PhaseEnd, Error> {
        let operation_id = claim.id;
        let booked = find(&*self.desk.client().await?, claim, RIDE_CREATED).await?;
        if self.order.raise_error {
            return Err(Error::Raised);
        }
        let charged = settle(self.desk, &booked.bill).await?;
        self.desk.pass(DiePoint::Charged);
        let mut client = self.desk.client().await?;
        let phase = claim.begin(&mut client).await?;
        // The processor's decision is final. No later phase asks it again, so the booking need not expire any more.
        let settle = "-- booking::settle\nUPDATE tracked_operations SET expires_at = NULL WHERE id = $1";
        phase.tx().execute(settle, &[&operation_id]).await?;
        match charged {
            Ok(charge_id) => self.note_charge(phase, &booked, &charge_id).await,
            Err(declined) => self.note_decline(phase, &booked, &declined).await,
        }
    }

    async fn note_charge(&self, phase: Phase<'_>, booked: &Booked, charge_id: &str) -> Result<PhaseEnd, Error> {
        let ride_id = booked.ride_id;
        let charge = json!({
            "id": charge_id, "ride_id": ride_id, "user_id": self.user.id,
            "amount": booked.bill.amount_cents, "currency": booked.bill.currency,
        });
        let noting = async {
            let statement = "-- booking::create_charge
                UPDATE bookings SET stripe_charge_id = $2 WHERE ride_id = $1 AND stripe_charge_id IS NULL";
            match phase.tx().execute(statement, &[&ride_id, &charge_id]).await? {
                1 => Ok(()),
                _ => Err(Error::Bug(format!("Ride {ride_id} is charged already."))),
            }
        };
        let text = charge.to_string();
        let (noted, audited, staged) = tokio::join!(
            noting,
            self.audit(phase.tx(), "charge.created", ride_id, &charge),
            self.stage(phase.tx(), self.user.id, "charge", "create", &text)
        );
        all_of([noted, audited, staged])?;
        Ok(phase.advance(CHARGE_CREATED).await?)
    }

    async fn note_decline(&self, phase: Phase<'_>, booked: &Booked, declined: &Declined) -> Result<PhaseEnd, Error> {
        let (ride_id, Declined(message)) = (booked.ride_id, declined);
        let decline = json!({ "ride_id": ride_id, "user_id": self.user.id, "message": message });
        let text = decline.to_string();
        let (audited, staged) = tokio::join!(
            self.audit(phase.tx(), "charge.declined", ride_id, &decline),
            self.stage(phase.tx(), self.user.id, "charge", "decline", &text)
        );
        all_of([audited, staged])?;
        let error = format!("Error from payment processor: {message}");
        let body = json!({ "error": error, "code": "charge_declined" }).to_string();
        finish(phase, Reply { status: 402, body, is_replayed: false }).await
    }

    async fn stage_receipt(&self, claim: &mut Claim) -> Result<PhaseEnd, Error> {
        let mut client = self.desk.client().await?;
        let booked = find(&*client, claim, CHARGE_CREATED).await?;
        let phase = claim.begin(&mut client).await?;
        let receipt = json!({
            "ride_id": booked.ride_id, "user_id": self.user.id,
            "amount": booked.bill.amount_cents, "currency": booked.bill.currency,
        });
        let text = receipt.to_string();
        let (audited, staged) = tokio::join!(
            self.audit(phase.tx(), "receipt.staged", booked.ride_id, &receipt),
            self.stage(phase.tx(), self.user.id, "receipt", "create", &text)
        );
        all_of([audited, staged])?;
        let body = json!({
            "message": "Payment accepted. Your pilot is on their way!",
            "ride": { "id": booked.ride_id, "distance_mm": booked.distance_mm, "created_at": booked.created_at },
        });
        finish(phase, Reply { status: 201, body: body.to_string(), is_replayed: false }).await
    }

    async fn audit(&self, tx: &Transaction<'_>, action: &str, ride_id: i64, data: &Value) -> Result<(), Error> {
        let (data, origin_ip) = (data.to_string(), self.order.origin_ip);
        tx.execute(
            "-- booking::audit
             INSERT INTO audit_records (action, data, origin_ip, resource_id, resource_type, user_id)
             VALUES ($1, $2::text::jsonb, $3, $4, 'ride', $5)",
            &[&action, &data, &origin_ip, &ride_id, &self.user.id],
        )
        .await?;
        Ok(())
    }

    async fn stage(&self, tx: &Transaction<'_>, key: i64, object: &str, action: &str, data: &str) -> Result<(), Error> {
        let traceparent = self.order.traceparent.map(|traceparent| traceparent.to_string());
        let (key, traceparent) = (key.to_string(), traceparent.as_deref());
        pglog::stage(tx, NewRecord { key: &key, object, action, data, traceparent }).await?;
        Ok(())
    }
}

/// The first error of statements that were sent together. After the statement that failed, Postgres refuses the others only
/// because the transaction has failed, so the cause is any other error.
fn all_of<const N: usize>(results: [Result<(), Error>; N]) -> Result<(), Error> {
    let is_aftermath = |error: &Error| {
        let Error::Operation(idempotency::Error::Postgres(error)) = error else { return false };
        error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION)
    };
    let mut errors: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
    errors.sort_by_key(is_aftermath);
    errors.into_iter().next().map_or(Ok(()), Err)
}

async fn finish(phase: Phase<'_>, reply: Reply) -> Result<PhaseEnd, Error> {
    let result = serde_json::to_vec(&reply).map_err(|error| Error::Bug(error.to_string()))?;
    Ok(phase.finish(result).await?)
}

/// The ride that an earlier phase has written.
async fn find(client: &impl Session, claim: &Claim, recovery_point: &str) -> Result<Booked, Error> {
    let row = client
        .query_opt(
            "-- booking::find
             SELECT ride_id, distance_mm, charge_key::text, amount_cents, currency, stripe_customer_id,
                    to_char(rides.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS created_at,
                    -- Before version 6 the form was made anew for each attempt, like this.
                    COALESCE(charge_form, json_build_object(
                        'amount', amount_cents::text, 'currency', currency, 'customer', stripe_customer_id,
                        'description', 'Charge for ride ' || ride_id))::text AS charge_form,
                    extract(epoch FROM op.created_at)::bigint AS booked_at_s,
                    extract(epoch FROM now() - op.created_at)::float8 AS age_s
             FROM bookings JOIN rides ON rides.id = ride_id JOIN tracked_operations AS op ON op.id = operation_id
             WHERE operation_id = $1",
            &[&claim.id],
        )
        .await?;
    let row = row.ok_or_else(|| Error::Bug(format!("Should have ride for key at {recovery_point}.")))?;
    let form = serde_json::from_str(row.get("charge_form"));
    Ok(Booked {
        ride_id: row.get("ride_id"),
        distance_mm: row.get("distance_mm"),
        created_at: row.get("created_at"),
        bill: Bill {
            form: form.map_err(|error| Error::Bug(format!("Unreadable charge_form: {error}")))?,
            charge_key: row.get("charge_key"),
            amount_cents: row.get("amount_cents"),
            currency: row.get("currency"),
            stripe_customer_id: row.get("stripe_customer_id"),
            age: Duration::from_secs_f64(row.get::<_, f64>("age_s").max(0.0)),
            booked_at_s: row.get("booked_at_s"),
        },
    })
}
