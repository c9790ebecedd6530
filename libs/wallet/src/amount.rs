//! Amounts of money. Inside they are whole cents; outside they are decimals with at most two places. Neither is a float.

use std::fmt;

/// The largest amount of one command, in cents: 10^9 units.
pub const AMOUNT_MAX: i64 = 100_000_000_000;

/// An amount of a command, in cents: 1 to [`AMOUNT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(i64);

/// Why a text is not the amount of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAnAmount {
    /// It is 0 or negative.
    #[error("must be greater than 0")]
    NotPositive,
    /// It has more than two places.
    #[error("has more than two decimal places: give at most two, as in 12.50")]
    TooFine,
    /// It is above [`AMOUNT_MAX`].
    #[error("is too large: give at most 1000000000")]
    TooLarge,
    /// It is no number.
    #[error("is not a number: give one such as 5 or 12.50, without quotes")]
    NotANumber,
}

impl Amount {
    /// An amount of whole cents.
    ///
    /// # Errors
    /// It is out of range.
    pub fn from_minor(minor: i64) -> Result<Self, NotAnAmount> {
        match minor {
            ..1 => Err(NotAnAmount::NotPositive),
            1..=AMOUNT_MAX => Ok(Self(minor)),
            _ => Err(NotAnAmount::TooLarge),
        }
    }

    /// Reads a number as JSON writes it, digit by digit: `5`, `12.50`, `1e3`.
    ///
    /// # Errors
    /// See [`NotAnAmount`].
    pub fn parse(text: &str) -> Result<Self, NotAnAmount> {
        let (is_negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
        let (mantissa, exponent) = digits.split_once(['e', 'E']).map_or((digits, None), |(m, e)| (m, Some(e)));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(whole) || mantissa.contains('.') && !is_number(fraction) {
            return Err(NotAnAmount::NotANumber);
        }
        let exponent = exponent.map_or(Ok(0), parse_exponent)?;
        let all: String = [whole, fraction].concat();
        let significant = all.trim_start_matches('0');
        if is_negative || significant.is_empty() {
            return Err(NotAnAmount::NotPositive);
        }
        // The number is `significant` times 10 to the power of this, in cents.
        let power = exponent - fraction.len() as i64 + 2;
        let trimmed = significant.trim_end_matches('0');
        let power = power + (significant.len() - trimmed.len()) as i64;
        if power < 0 {
            return Err(NotAnAmount::TooFine);
        }
        // 19 digits do not fit, and AMOUNT_MAX has 12.
        if trimmed.len() as i64 + power > 18 {
            return Err(NotAnAmount::TooLarge);
        }
        let minor = trimmed.parse::<i64>().map_err(|_| NotAnAmount::NotANumber)? * 10_i64.pow(power as u32);
        Self::from_minor(minor)
    }

    /// In cents.
    pub fn minor(self) -> i64 {
        self.0
    }
}

/// The exponent of a number, held within bounds that no amount reaches.
fn parse_exponent(text: &str) -> Result<i64, NotAnAmount> {
    let (sign, digits) = match text.as_bytes().first() {
        Some(b'-') => (-1, &text[1..]),
        Some(b'+') => (1, &text[1..]),
        _ => (1, text),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NotAnAmount::NotANumber);
    }
    // More digits than a body can have places.
    Ok(sign * digits.parse::<i64>().unwrap_or(i64::MAX).min(1_000_000_000))
}

impl fmt::Display for Amount {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&short(self.0))
    }
}

/// Cents as a decimal with two places, as JSON carries it: `-5.00`.
pub fn decimal(minor: i64) -> String {
    let sign = if minor < 0 { "-" } else { "" };
    let cents = minor.unsigned_abs();
    format!("{sign}{}.{:02}", cents / 100, cents % 100)
}

/// Cents for a sentence: `-5`, or `-5.25`.
pub(crate) fn short(minor: i64) -> String {
    let text = decimal(minor);
    text.strip_suffix(".00").map(str::to_owned).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_read_as_they_are_written() {
        for (text, minor) in [
            ("5", 500),
            ("5.0", 500),
            ("0.01", 1),
            ("12.50", 1250),
            ("12.5000", 1250),
            ("1e3", 100_000),
            ("1E-2", 1),
            ("0.1e+1", 100),
            ("1000000000", AMOUNT_MAX),
            ("0.00000001e17", AMOUNT_MAX),
        ] {
            assert_eq!(Amount::parse(text).map(Amount::minor), Ok(minor), "{text}");
        }
    }

    #[test]
    fn every_other_text_is_refused_with_its_reason() {
        use NotAnAmount::{NotANumber, NotPositive, TooFine, TooLarge};
        for (text, reason) in [
            ("0", NotPositive),
            ("-0.00", NotPositive),
            ("-5", NotPositive),
            ("0e999999999999999999999", NotPositive),
            ("0.001", TooFine),
            ("1.005", TooFine),
            ("1e-400", TooFine),
            ("1000000000.01", TooLarge),
            ("1e400", TooLarge),
            ("1e99999999999999999999999", TooLarge),
            ("99999999999999999999999999", TooLarge),
            ("", NotANumber),
            ("\"5\"", NotANumber),
            ("5.", NotANumber),
            (".5", NotANumber),
            ("+5", NotANumber),
            ("5 ", NotANumber),
            ("1e", NotANumber),
            ("1e+-3", NotANumber),
            ("NaN", NotANumber),
            ("inf", NotANumber),
            ("0x10", NotANumber),
            ("٣", NotANumber),
            ("null", NotANumber),
        ] {
            assert_eq!(Amount::parse(text), Err(reason), "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_amount_is_read_back_from_its_decimal(minor in 1..=AMOUNT_MAX) {
            prop_assert_eq!(Amount::parse(&decimal(minor)).map(Amount::minor), Ok(minor));
            prop_assert_eq!(Amount::parse(&short(minor)).map(Amount::minor), Ok(minor));
        }
    }
}
