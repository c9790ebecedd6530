//! Charging for a booking: asks the processor for the charge, or looks for the charge that it has made.
//!
//! A new booking is charged under its key. The processor forgets a key after a day, and knows its charges for ever: so an old
//! booking is looked for among the customer's charges before it is charged, and after 23 hours it is only looked for.

use std::time::{Duration, Instant};

use payments::{ChargeError, ChargeForm, ChargeState, Charged};

use crate::desk::Desk;
use crate::error::Error;

/// From this age on a booking is looked for before it is charged. Postgres may have been put back since the processor was
/// asked first, and then its key may be older than the booking.
const LOOK_AFTER: Duration = Duration::from_secs(3600);

/// From this age on a booking is not charged any more. Stripe remembers a key for 24 hours.
pub(crate) const ASK_UNTIL: Duration = Duration::from_secs(23 * 3600);

/// How long the processor may take to list a charge that was asked for just before [`ASK_UNTIL`].
const LIST_WAIT: Duration = Duration::from_secs(600);

/// How long before the booking its charge may have been made: Postgres may have been put back.
const MADE_BEFORE: Duration = Duration::from_secs(72 * 3600);

/// The reason that the client is told if the processor was never reached, or never charged.
const TOO_LATE: &str = "The charge could not be made within a day. Nothing was charged.";

/// A booking that is to be charged.
pub(crate) struct Bill {
    pub form: ChargeForm,
    pub charge_key: String,
    pub amount_cents: i64,
    pub currency: String,
    pub stripe_customer_id: String,
    /// The time since the booking was asked for first.
    pub age: Duration,
    /// That moment, in seconds since 1970.
    pub booked_at_s: i64,
}

/// A charge that the processor declined, and its reason.
pub(crate) struct Declined(pub String);

/// Returns the charge's id, or the reason why there is none and will be none.
pub(crate) async fn settle(desk: &Desk, bill: &Bill) -> Result<Result<String, Declined>, Error> {
    if bill.age >= ASK_UNTIL && bill.form.charge_key().is_none() {
        let message = "the booking is too old to be charged, and its charge cannot be looked for".to_owned();
        return Err(Error::Processor(ChargeError::Refused { message }));
    }
    let pass = desk.breaker.pass(Instant::now()).map_err(Error::ProcessorAway)?;
    let settled = ask(desk, bill).await;
    match &settled {
        Err(Error::Processor(ChargeError::Unavailable { .. })) => desk.breaker.failed(pass, Instant::now()),
        _ => desk.breaker.succeeded(),
    }
    settled
}

async fn ask(desk: &Desk, bill: &Bill) -> Result<Result<String, Declined>, Error> {
    if bill.age >= LOOK_AFTER && bill.form.charge_key().is_some() {
        if let Some(charged) = look(desk, bill).await? {
            return conclude(bill, charged);
        }
        if bill.age >= ASK_UNTIL + LIST_WAIT {
            return Ok(Err(Declined(TOO_LATE.to_owned())));
        }
        if bill.age >= ASK_UNTIL {
            let message = "a charge may still be under way".to_owned();
            return Err(Error::Processor(ChargeError::Busy { message }));
        }
    }
    match desk.stripe.charge(&bill.form, &bill.charge_key).await {
        Ok(charged) => conclude(bill, charged),
        Err(ChargeError::Declined { message }) => Ok(Err(Declined(message))),
        Err(ChargeError::Spent { message }) => match look(desk, bill).await? {
            Some(charged) => conclude(bill, charged),
            None => Err(Error::Processor(ChargeError::Refused { message })),
        },
        Err(error) => Err(Error::Processor(error)),
    }
}

async fn look(desk: &Desk, bill: &Bill) -> Result<Option<Charged>, Error> {
    let since_s = bill.booked_at_s - MADE_BEFORE.as_secs() as i64;
    let found = desk.stripe.find(&bill.form, since_s).await.map_err(Error::Processor)?;
    let charge = found.as_ref().map(|charged| charged.id.as_str());
    tracing::info!(charge_key = bill.charge_key, charge, "looked for the charge at the processor");
    Ok(found)
}

fn conclude(bill: &Bill, charged: Charged) -> Result<Result<String, Declined>, Error> {
    match charged.state() {
        ChargeState::Paid => {}
        ChargeState::Pending => return Err(Error::Processor(ChargeError::Pending { charge_id: charged.id })),
        ChargeState::Failed => return Ok(Err(Declined("The charge failed. Nothing was charged.".to_owned()))),
    }
    let is_ours = charged.amount == Some(bill.amount_cents)
        && charged.currency.as_ref() == Some(&bill.currency)
        && charged.customer.as_ref() == Some(&bill.stripe_customer_id);
    if is_ours && !charged.refunded {
        return Ok(Ok(charged.id));
    }
    let Charged { id, amount, currency, customer, refunded, .. } = charged;
    let message = format!(
        "the charge {id} of this booking has amount {amount:?}, currency {currency:?}, customer {customer:?}, refunded: \
         {refunded}"
    );
    Err(Error::Processor(ChargeError::Refused { message }))
}
