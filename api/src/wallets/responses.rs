//! The error responses of wallets, for the description. Status, code and sentence come from [`WalletError`].

use utoipa::IntoResponses;
use wallet::{Action, NotAKsuid, NotAnAmount};

use crate::body::BODY_LEN_MAX;
use crate::error::Error;
use crate::key::KEY_LEN_MAX;
use crate::responses::{Case, Responses, described};
use crate::wallets::error::{Fault, WalletError};

impl From<&WalletError> for Case {
    fn from(error: &WalletError) -> Self {
        Self { status: error.status(), code: error.code(), text: error.to_string(), is_temporary: error.is_temporary() }
    }
}

/// Errors of a request for a new wallet's id.
pub(crate) struct CreateErrors;

impl IntoResponses for CreateErrors {
    fn responses() -> Responses {
        by_status(&[needless_parameter(), WalletError::WrongMethod { allowed: "POST" }])
    }
}

/// Errors of a credit or a debit.
pub(crate) struct CommandErrors;

impl IntoResponses for CommandErrors {
    fn responses() -> Responses {
        by_status(&[general(), commands(Action::Debit, r#"{"amuont":5}"#)].concat())
    }
}

/// Errors of a transfer.
pub(crate) struct TransferErrors;

impl IntoResponses for TransferErrors {
    fn responses() -> Responses {
        let action = Action::Transfer;
        let no_command = |fault| WalletError::NotACommand { action, fault };
        let own = vec![no_command(Fault::To { text: "x".to_owned(), reason: NotAKsuid }), no_command(Fault::ToItself)];
        by_status(&[general(), commands(action, r#"{"amount":5}"#), own].concat())
    }
}

/// Errors of a read.
pub(crate) struct ReadErrors;

impl IntoResponses for ReadErrors {
    fn responses() -> Responses {
        let parameter = Error::Parameter { name: "min_version", wanted: "a whole number from 0 on" };
        let own = vec![
            parameter.into(),
            WalletError::RepeatedParameter,
            WalletError::UnknownParameter { name: "minversion".to_owned(), known: vec!["min_version".to_owned()] },
            WalletError::VersionNotReached { version: 6, min_version: 7 },
        ];
        by_status(&[general(), own].concat())
    }
}

/// Errors of every request to a wallet.
fn general() -> Vec<WalletError> {
    vec![
        WalletError::NotAPath,
        WalletError::NotAKsuid { text: "x".to_owned(), reason: NotAKsuid },
        WalletError::NoHandler { endpoint: "x".to_owned() },
        WalletError::WrongMethod { allowed: "GET,HEAD" },
        Error::Internal.into(),
        Error::Overloaded.into(),
        Error::Unavailable.into(),
    ]
}

/// Errors of every command.
fn commands(action: Action, bad_body: &str) -> Vec<WalletError> {
    let no_command = |fault| WalletError::NotACommand { action, fault };
    let (body, reason) = (bad_body.to_owned(), "it has other keys".to_owned());
    vec![
        WalletError::Unread(Error::Malformed("The body broke off.".to_owned())),
        WalletError::Unread(Error::TooLarge { max: BODY_LEN_MAX }),
        WalletError::Unread(Error::TooSlow),
        WalletError::Unread(Error::Encoded),
        WalletError::UnsupportedType,
        WalletError::NotJson {
            reason: "EOF while parsing a value at line 1 column 0".to_owned(),
            example: r#"send an object such as {"amount": 5}"#,
        },
        needless_parameter(),
        no_command(Fault::Body { body, reason }),
        no_command(Fault::AmountNotANumber { raw: "\"5\"".to_owned() }),
        no_command(Fault::Amount { action, reason: NotAnAmount::NotPositive }),
        no_command(Fault::Amount { action, reason: NotAnAmount::TooFine }),
        WalletError::Rejected {
            action,
            reason: format!("{action} of 5 rejected; would cause balance of -5 (overdrawn)"),
        },
        Error::KeyEmpty.into(),
        Error::KeyTooLong { max: KEY_LEN_MAX }.into(),
        Error::KeyMalformed.into(),
        Error::KeyMismatch.into(),
        Error::WalletBusy.into(),
        Error::OutcomeUnknown.into(),
    ]
}

/// The error of a query string where none is taken.
fn needless_parameter() -> WalletError {
    WalletError::UnknownParameter { name: "dry_run".to_owned(), known: vec![] }
}

fn by_status(errors: &[WalletError]) -> Responses {
    described("WalletErrorBody", errors.iter().map(Case::from))
}
