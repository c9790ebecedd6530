//! The bodies of commands: `{"amount": 5}`, and `{"to": "<ksuid>", "amount": 5}` for a transfer.
//!
//! An amount is read digit by digit. A key that no command has is refused: in `{"amount":5,"to":"…"}` for a credit it would
//! change who is paid, and in `{"amuont":5}` it is a mistake.

use serde::Deserialize;
use serde_json::error::Category;
use serde_json::json;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use utoipa::openapi::schema::ObjectBuilder;
use utoipa::openapi::{RefOr, Schema, Type};
use wallet::{Action, Amount, NotAnAmount, WalletId};

use crate::wallets::error::{Fault, WalletError};

/// The content of a command's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub amount: Amount,
    /// The receiving wallet of a transfer.
    pub to: Option<WalletId>,
}

/// The body of a credit or a debit. Another key is refused.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "amount": 5 }))]
pub(crate) struct AmountBody<'a> {
    #[serde(borrow)]
    #[schema(schema_with = described_amount)]
    amount: &'a RawValue,
}

/// The body of a transfer. Another key is refused.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "to": "29p8aA0XrY2slsqmEyNzBlS7f64", "amount": 5 }))]
pub(crate) struct TransferBody<'a> {
    /// The receiving wallet: another than that of the path.
    #[serde(borrow)]
    #[schema(value_type = String, pattern = "^([0-9A-Z][0-9A-Za-z]{26}|a[0-9A-V][0-9A-Za-z]{25})$")]
    to: &'a RawValue,
    #[serde(borrow)]
    #[schema(schema_with = described_amount)]
    amount: &'a RawValue,
}

fn described_amount() -> RefOr<Schema> {
    let about = "A decimal with at most two places.";
    let number = ObjectBuilder::new().schema_type(Type::Number).description(Some(about)).examples([json!(5)]);
    let number = number.minimum(Some(0.01)).maximum(Some(1_000_000_000)).multiple_of(Some(0.01));
    RefOr::T(number.build().into())
}

/// Reads the body of a command for the wallet `payer`.
///
/// # Errors
/// It is no JSON, or no command of this kind.
pub(crate) fn read(payer: WalletId, action: Action, body: &[u8]) -> Result<Asked, WalletError> {
    let no_command = |fault| WalletError::NotACommand { action, fault };
    if action != Action::Transfer {
        let AmountBody { amount } = parse(action, body)?;
        return Ok(Asked { amount: read_amount(action, amount).map_err(no_command)?, to: None });
    }
    let TransferBody { to, amount } = parse(action, body)?;
    let to = read_wallet(to).map_err(no_command)?;
    let amount = read_amount(action, amount).map_err(no_command)?;
    if to == payer {
        return Err(no_command(Fault::ToItself));
    }
    Ok(Asked { amount, to: Some(to) })
}

fn parse<'a, T: Deserialize<'a>>(action: Action, body: &'a [u8]) -> Result<T, WalletError> {
    let not_cast = |reason: String| {
        let fault = Fault::Body { body: String::from_utf8_lossy(body).trim().to_owned(), reason };
        WalletError::NotACommand { action, fault }
    };
    match serde_json::from_slice(body) {
        // Serde would accept an array for a struct, too.
        Ok(_) if body.trim_ascii_start().first() != Some(&b'{') => Err(not_cast(example(action).to_owned())),
        Ok(command) => Ok(command),
        Err(error) if error.classify() == Category::Data => Err(not_cast(format!("{error}; {}", example(action)))),
        Err(error) => Err(WalletError::NotJson { reason: error.to_string(), example: example(action) }),
    }
}

fn example(action: Action) -> &'static str {
    match action {
        Action::Credit | Action::Debit => r#"send an object such as {"amount": 5}"#,
        Action::Transfer => r#"send an object such as {"to": "28skwt5B8zTrs6AqBWrSgCHLcRL", "amount": 5}"#,
    }
}

fn read_amount(action: Action, raw: &RawValue) -> Result<Amount, Fault> {
    Amount::parse(raw.get()).map_err(|reason| match reason {
        NotAnAmount::NotANumber => Fault::AmountNotANumber { raw: raw.get().to_owned() },
        reason => Fault::Amount { action, reason },
    })
}

fn read_wallet(raw: &RawValue) -> Result<WalletId, Fault> {
    // A number or an object is shown as it stands, and is no KSUID either.
    let text: String = serde_json::from_str(raw.get()).unwrap_or_else(|_| raw.get().to_owned());
    text.parse().map_err(|reason| Fault::To { text, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYER: &str = "28skwt5B8zTrs6AqBWrSgCHLcRL";
    const OTHER: &str = "29p8aA0XrY2slsqmEyNzBlS7f64";

    fn read(action: Action, body: &str) -> Result<Asked, (&'static str, String)> {
        let asked = super::read(PAYER.parse().unwrap(), action, body.as_bytes());
        asked.map_err(|error| (error.code(), error.to_string()))
    }

    #[test]
    fn a_command_is_read_digit_by_digit() {
        for (body, minor) in [
            (r#"{"amount": 5}"#, 500),
            (" {\n\"amount\":12.50 }\n", 1250),
            (r#"{"amount":1e-2}"#, 1),
            (r#"{"amount":1000000000}"#, 100_000_000_000),
            (r#"{"\u0061mount":0.10}"#, 10),
        ] {
            let asked = Asked { amount: Amount::from_minor(minor).unwrap(), to: None };
            assert_eq!(read(Action::Credit, body), Ok(asked), "{body}");
        }
        let body = format!(r#"{{"amount":5,"to":"{OTHER}"}}"#);
        let asked = Asked { amount: Amount::from_minor(500).unwrap(), to: Some(OTHER.parse().unwrap()) };
        assert_eq!(read(Action::Transfer, &body), Ok(asked));
    }

    #[test]
    fn every_other_body_is_refused_with_its_reason() {
        for (body, code, part) in [
            ("", "body_malformed", "failed to parse JSON from request body: EOF"),
            ("{", "body_malformed", "failed to parse JSON"),
            (r#"{"amount":5} x"#, "body_malformed", "trailing characters"),
            (r#"{"amount":05}"#, "body_malformed", "failed to parse JSON"),
            (r#"{"amount":.5}"#, "body_malformed", "failed to parse JSON"),
            (r#"{"amount":NaN}"#, "body_malformed", "failed to parse JSON"),
            ("amount=5", "body_malformed", "failed to parse JSON"),
            ("[5]", "command_malformed", "failed to cast requestBody=[5] to Amount: "),
            ("5", "command_malformed", "failed to cast requestBody=5 to Amount: "),
            ("null", "command_malformed", "failed to cast requestBody=null to Amount: "),
            ("{}", "command_malformed", "missing field `amount`"),
            (r#"{"amuont":5}"#, "command_malformed", "unknown field `amuont`, expected `amount`"),
            (r#"{"amount":5,"to":"x"}"#, "command_malformed", "unknown field `to`"),
            (r#"{"amount":5,"amount":6}"#, "command_malformed", "duplicate field `amount`"),
            (r#"{"amount":"5"}"#, "amount_not_a_number", r#"failed to cast rawAmount="5" to float64"#),
            (r#"{"amount":null}"#, "amount_not_a_number", "failed to cast rawAmount=null to float64"),
            (r#"{"amount":[5]}"#, "amount_not_a_number", "failed to cast rawAmount=[5] to float64"),
            (r#"{"amount":0}"#, "amount_out_of_range", "debit amount must be greater than 0"),
            (r#"{"amount":-5}"#, "amount_out_of_range", "debit amount must be greater than 0"),
            (r#"{"amount":1e400}"#, "amount_out_of_range", "debit amount is too large"),
            (r#"{"amount":0.001}"#, "amount_too_fine", "debit amount has more than two decimal places"),
        ] {
            let (is, text) = read(Action::Debit, body).unwrap_err();
            assert!(is == code && text.contains(part), "{body}: {is} {text}");
            let is_handled = is != "body_malformed";
            assert_eq!(text.starts_with(r#"failed to handle endpoint="debit": "#), is_handled, "{text}");
        }
    }

    #[test]
    fn a_transfer_has_another_wallet() {
        for (to, code) in [
            (r#""x""#.to_owned(), "ksuid_malformed"),
            ("5".to_owned(), "ksuid_malformed"),
            (r#"{"a":1}"#.to_owned(), "ksuid_malformed"),
            (r#""world""#.to_owned(), "ksuid_malformed"),
            (format!("\"{PAYER}\""), "transfer_to_itself"),
        ] {
            let (is, text) = read(Action::Transfer, &format!(r#"{{"to":{to},"amount":5}}"#)).unwrap_err();
            assert_eq!(is, code, "{to}: {text}");
        }
        assert_eq!(read(Action::Transfer, r#"{"amount":5}"#).unwrap_err().0, "command_malformed");
    }

    #[test]
    fn a_long_text_is_not_repeated_as_a_whole() {
        let (_, text) = read(Action::Credit, &format!(r#"{{"amount":"{}"}}"#, "é".repeat(5_000))).unwrap_err();
        assert!(text.chars().count() < 300, "{text}");
    }
}
