//! A charge: the form that asks for it, the charge as Stripe shows it, and why there is none.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The name of the metadata by which a charge is found again. Its value is the idempotency key of the charge.
pub const CHARGE_KEY: &str = "charge_key";

/// The fields of a charge, as they are sent. A caller that may have to repeat a charge stores them before the first attempt:
/// Stripe refuses a repetition with other fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChargeForm(BTreeMap<String, String>);

impl ChargeForm {
    /// The value of a field, for example of `customer` or of `metadata[charge_key]`.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The key by which the charge is found again. `None`: the form was stored before charges had one.
    pub fn charge_key(&self) -> Option<&str> {
        self.field("metadata[charge_key]")
    }
}

impl<const N: usize> From<[(&str, &str); N]> for ChargeForm {
    fn from(fields: [(&str, &str); N]) -> Self {
        Self(fields.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

/// A charge, as Stripe shows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Charged {
    /// For example `ch_3PqJ0s2eZvKYlo2C`.
    pub id: String,
    /// In the currency's smallest unit.
    pub amount: Option<i64>,
    /// Three letters, for example `usd`.
    pub currency: Option<String>,
    /// The customer who was charged.
    pub customer: Option<String>,
    /// The description in the request.
    pub description: Option<String>,
    /// The metadata in the request.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Whether the charge was refunded in full.
    #[serde(default)]
    pub refunded: bool,
    status: Option<String>,
    #[serde(default)]
    paid: bool,
    captured: Option<bool>,
    failure_message: Option<String>,
}

/// Whether a charge is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChargeState {
    /// The money is taken.
    Paid,
    /// The money may still be taken, or the server does not say. Look at the charge again later.
    Pending,
    /// The money was not taken and will not be.
    Failed,
}

impl Charged {
    /// Whether it is paid. Only a charge of which each field says so is.
    pub fn state(&self) -> ChargeState {
        match self.status.as_deref() {
            Some("succeeded") if self.paid && self.captured != Some(false) => ChargeState::Paid,
            Some("failed") => ChargeState::Failed,
            _ => ChargeState::Pending,
        }
    }

    /// Whether it is paid.
    pub fn is_paid(&self) -> bool {
        self.state() == ChargeState::Paid
    }

    /// The key under which it was made. `None`: it was made by a program that sends no key in its metadata.
    pub fn charge_key(&self) -> Option<&str> {
        self.metadata.get(CHARGE_KEY).map(String::as_str)
    }

    /// The charge, if it is paid; otherwise the reason.
    pub(crate) fn if_paid(self) -> Result<Self, ChargeError> {
        match self.state() {
            ChargeState::Paid => Ok(self),
            ChargeState::Pending => Err(ChargeError::Pending { charge_id: self.id }),
            ChargeState::Failed => {
                let message =
                    self.failure_message.unwrap_or_else(|| "The charge failed.".to_owned()).replace('\0', " ");
                Err(ChargeError::Declined { message })
            }
        }
    }
}

/// Why a charge was not made, or may not have been made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChargeError {
    /// The card was declined. This is final: Stripe gives the same response to every retry with this key.
    #[error("declined: {message}")]
    Declined {
        /// Stripe's words, for people: `Your card was declined.`
        message: String,
    },
    /// The charge is made and not yet paid. Ask again later: the charge then is paid or has failed.
    #[error("pending: the charge {charge_id} is not paid yet")]
    Pending {
        /// The charge.
        charge_id: String,
    },
    /// The request or the key is wrong. Nothing was charged. A retry helps only after an operator has corrected the settings:
    /// the error says nothing about the card.
    #[error("refused: {message}")]
    Refused {
        /// The reason, for operators.
        message: String,
    },
    /// Every further request with this key gets this error, and yet the charge may have been made: look for it.
    #[error("no answer under this key: {message}")]
    Spent {
        /// The reason, for operators.
        message: String,
    },
    /// Another request with this key is in progress.
    #[error("busy: {message}")]
    Busy {
        /// The reason, for operators.
        message: String,
    },
    /// There was no usable response. The charge may have been made or not: retry with the same key.
    #[error("payments unavailable: {message}")]
    Unavailable {
        /// The cause, for operators.
        message: String,
    },
}

impl ChargeError {
    /// A word for metrics and logs.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Declined { .. } => "declined",
            Self::Pending { .. } => "pending",
            Self::Refused { .. } => "refused",
            Self::Spent { .. } => "spent",
            Self::Busy { .. } => "busy",
            Self::Unavailable { .. } => "unavailable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charged(json: &str) -> Charged {
        serde_json::from_str(&format!("{{\"id\":\"ch_1\"{json}}}")).unwrap()
    }

    #[test]
    fn only_a_charge_that_says_so_in_every_field_is_paid() {
        assert!(charged(r#","status":"succeeded","paid":true"#).is_paid());
        assert!(charged(r#","status":"succeeded","paid":true,"captured":true"#).is_paid());
        for pending in [
            "",
            r#","paid":true"#,
            r#","status":"succeeded""#,
            r#","status":"succeeded","paid":false"#,
            r#","status":"pending","paid":true"#,
            r#","status":"something new","paid":true"#,
            r#","status":"succeeded","paid":true,"captured":false"#,
        ] {
            assert_eq!(charged(pending).state(), ChargeState::Pending, "{pending}");
        }
        assert_eq!(charged(r#","status":"failed","paid":true"#).state(), ChargeState::Failed);
    }
}
