//! Reads requests as Stripe does: a key, a form, and the charge or customer that it asks for.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::Request;
use axum::extract::rejection::BytesRejection;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use crate::answer::Answer;
use crate::ledger::{BAD_SOURCE, ChargeObject, Customer, GOOD_SOURCE, Ledger, Made, new_id, now};
use crate::stripe::IDEMPOTENCY_KEY_LEN_MAX;

/// The amounts of a charge, in the currency's smallest unit. These are Stripe's limits for usd.
const AMOUNT: std::ops::RangeInclusive<i64> = 50..=99_999_999;

/// The fields of a form, ordered by name.
pub(crate) type Form = BTreeMap<String, String>;

/// Refuses a request without a test key. Any test key is accepted.
pub(crate) async fn authorize(request: Request, next: Next) -> Result<Response, Answer> {
    let header = request.headers().get(AUTHORIZATION).and_then(|header| header.to_str().ok());
    match header.and_then(|header| header.strip_prefix("Bearer sk_test_")) {
        Some(rest) if !rest.is_empty() => Ok(next.run(request).await),
        _ => {
            let message = "Invalid API Key provided: send 'Authorization: Bearer sk_test_…'.";
            Err(Answer::error(StatusCode::UNAUTHORIZED, "invalid_request_error", None, message))
        }
    }
}

/// The fields of a body or a query.
pub(crate) fn form(bytes: &[u8]) -> Result<Form, Answer> {
    serde_urlencoded::from_bytes(bytes).map_err(|error| Answer::invalid(None, &format!("Malformed form: {error}.")))
}

/// The body, if it has arrived and is not too long.
pub(crate) fn body(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Answer> {
    body.map_err(|error| Answer::error(error.status(), "invalid_request_error", None, &error.body_text()))
}

/// Refuses a compressed body.
pub(crate) fn plain(headers: &HeaderMap) -> Result<(), Answer> {
    if web::is_encoded(headers) {
        let message = "Send the body without Content-Encoding.";
        return Err(Answer::error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", None, message));
    }
    Ok(())
}

/// The idempotency key, if there is one.
pub(crate) fn key(headers: &HeaderMap) -> Result<Option<String>, Answer> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    match key.to_str() {
        Ok(key) if (1..=IDEMPOTENCY_KEY_LEN_MAX).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(Answer::invalid(None, "An idempotency key has 1 to 255 visible characters.")),
    }
}

/// Reads a customer: `email` and `source`.
pub(crate) fn read_customer(mut form: Form, _: &Ledger) -> Result<Made, Answer> {
    let (email, source) = (take(&mut form, "email")?, take(&mut form, "source")?);
    nothing_else(form)?;
    if source != GOOD_SOURCE && source != BAD_SOURCE {
        return Err(Answer::invalid("resource_missing", &format!("No such token: '{source}'")));
    }
    Ok(Made::Customer(Customer { id: new_id("cus"), created: now(), email, source }))
}

/// Reads a charge: `amount`, `currency`, `customer`, and `description` if it is there.
pub(crate) fn read_charge(mut form: Form, ledger: &Ledger) -> Result<Made, Answer> {
    let amount = take(&mut form, "amount")?;
    let wrong = || Answer::invalid("parameter_invalid_integer", &format!("Invalid integer: {amount}"));
    let amount: i64 = amount.parse().map_err(|_| wrong())?;
    if amount < *AMOUNT.start() {
        return Err(Answer::invalid("amount_too_small", "Amount must be at least 50 cents."));
    }
    if amount > *AMOUNT.end() {
        return Err(Answer::invalid("amount_too_large", "Amount must be no more than 999,999.99."));
    }
    let currency = take(&mut form, "currency")?.to_ascii_lowercase();
    if currency.len() != 3 || !currency.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return Err(Answer::invalid(None, &format!("Invalid currency: {currency}.")));
    }
    let (customer, description) = (take(&mut form, "customer")?, form.remove("description"));
    let metadata = take_metadata(&mut form);
    nothing_else(form)?;
    let Some(payer) = ledger.customers.get(&customer) else {
        return Err(Answer::invalid("resource_missing", &format!("No such customer: '{customer}'")));
    };
    let declined = payer.source == BAD_SOURCE;
    Ok(Made::Charge(ChargeObject {
        id: new_id("ch"),
        created: now(),
        amount,
        currency,
        customer,
        description,
        metadata,
        declined,
        settles_at_ms: None,
    }))
}

fn take(form: &mut Form, name: &str) -> Result<String, Answer> {
    let value = form.remove(name).filter(|value| !value.is_empty());
    value.ok_or_else(|| Answer::invalid("parameter_missing", &format!("Missing required param: {name}.")))
}

/// The fields `metadata[name]`, by their names.
fn take_metadata(form: &mut Form) -> BTreeMap<String, String> {
    let name_of = |field: &str| Some(field.strip_prefix("metadata[")?.strip_suffix(']')?.to_owned());
    let metadata: BTreeMap<String, String> =
        form.iter().filter_map(|(field, value)| Some((name_of(field)?, value.clone()))).collect();
    form.retain(|field, _| name_of(field).is_none());
    metadata
}

fn nothing_else(form: Form) -> Result<(), Answer> {
    match form.into_keys().next() {
        Some(name) => Err(Answer::invalid("parameter_unknown", &format!("Received unknown parameter: {name}"))),
        None => Ok(()),
    }
}
