//! Distances: clients write metres, and the project counts whole millimetres.

use crate::error::Error;

/// The longest ride, in mm: 10^9 m, some 25 times around the Earth. Also a constraint of table `rides`.
const DISTANCE_MM_MAX: i64 = 1_000_000_000_000;

/// Parses a distance in metres, and rounds it to the millimetre, half up: `0.0005` is 1 mm.
///
/// A number is every text that Ruby's `Float()` accepts, because the original service used it: `123.0`, `1e3`, `0x1A`,
/// `1_000`, spaces around. The text is read digit by digit, so nothing is lost in a binary fraction.
///
/// ```
/// assert_eq!(api::parse_distance("123.0").unwrap(), 123_000);
/// assert_eq!(api::parse_distance("1e3").unwrap(), 1_000_000);
/// assert!(api::parse_distance("12abc").is_err());
/// ```
///
/// # Errors
/// [`Error::DistanceMissing`] for an empty text, [`Error::DistanceNotANumber`], and [`Error::DistanceOutOfRange`] for a
/// distance below one millimetre or above 10^9 m.
pub fn parse_distance(text: &str) -> Result<i64, Error> {
    let text = text.trim();
    if text.is_empty() {
        return Err(Error::DistanceMissing);
    }
    let (negative, number) = match text.strip_prefix(['-', '+']) {
        Some(number) => (text.starts_with('-'), number),
        None => (false, text),
    };
    let distance_mm = match number.strip_prefix("0x").or_else(|| number.strip_prefix("0X")) {
        Some(hex) => parse_hexadecimal(hex)?,
        None => parse_decimal(number)?,
    };
    match distance_mm {
        1..=DISTANCE_MM_MAX if !negative => Ok(distance_mm),
        _ => Err(Error::DistanceOutOfRange),
    }
}

/// Metres with one decimal, as the response shows them: `123.0`.
pub(crate) fn metres_with_one_decimal(distance_mm: i64) -> String {
    let decimetres = (distance_mm + 50) / 100;
    format!("{}.{}", decimetres / 10, decimetres % 10)
}

/// In mm. A number that is too large for any ride is `i64::MAX`.
fn parse_hexadecimal(hex: &str) -> Result<i64, Error> {
    if hex.is_empty() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Error::DistanceNotANumber);
    }
    Ok(i64::from_str_radix(hex, 16).map_or(i64::MAX, |metres| metres.saturating_mul(1000)))
}

/// In mm. A number that is too large for any ride is `i64::MAX`.
fn parse_decimal(number: &str) -> Result<i64, Error> {
    let (mantissa, exponent) = split(number, ['e', 'E']);
    let (whole, fraction) = split(mantissa, ['.', '.']);
    let exponent_digits = exponent.map(|exponent| exponent.strip_prefix(['-', '+']).unwrap_or(exponent));
    if ![Some(whole), fraction, exponent_digits].into_iter().flatten().all(is_digits) {
        return Err(Error::DistanceNotANumber);
    }
    let digits = || digits_of(whole).chain(digits_of(fraction.unwrap_or("")));
    let leading_zero_count = digits().take_while(|&digit| digit == 0).count();
    let mut significant = digits().skip(leading_zero_count).peekable();
    // The number is 0.<significant> · 10^point, in mm.
    let exponent = exponent.map_or(0, parse_exponent);
    let point = (digits_of(whole).count() as i64 - leading_zero_count as i64 + 3).saturating_add(exponent);
    if significant.peek().is_none() || point < 0 {
        return Ok(0);
    }
    // 10^12 mm has 13 digits.
    let Ok(point @ 0..=13) = usize::try_from(point) else { return Ok(i64::MAX) };
    let mut next = || significant.next().unwrap_or(0);
    let truncated = (0..point).fold(0, |sum, _| sum * 10 + next());
    let round_up = next() >= 5;
    Ok(truncated + i64::from(round_up))
}

/// The values of the digits, without the underscores between them.
fn digits_of(text: &str) -> impl Iterator<Item = i64> {
    text.bytes().filter(u8::is_ascii_digit).map(|digit| i64::from(digit - b'0'))
}

/// An exponent with too many digits for 64 bits saturates: the distance is then 0 or too large.
fn parse_exponent(exponent: &str) -> i64 {
    let saturated = if exponent.starts_with('-') { i64::MIN / 2 } else { i64::MAX / 2 };
    exponent.replace('_', "").parse().map_or(saturated, |exponent: i64| exponent.clamp(i64::MIN / 2, i64::MAX / 2))
}

fn split(text: &str, separators: [char; 2]) -> (&str, Option<&str>) {
    text.split_once(separators).map_or((text, None), |(before, after)| (before, Some(after)))
}

/// Digits, with single underscores between them.
fn is_digits(text: &str) -> bool {
    text.split('_').all(|group| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metres_become_millimetres() {
        for (text, distance_mm) in [
            ("123.0", 123_000),
            ("123", 123_000),
            ("0.001", 1),
            ("5.5", 5_500),
            ("+7", 7_000),
            (" 7\n", 7_000),
            ("1e3", 1_000_000),
            ("1E+3", 1_000_000),
            ("25e-1", 2_500),
            ("1_000", 1_000_000),
            ("1_000.5_0", 1_000_500),
            ("0x1A", 26_000),
            ("1000000000", DISTANCE_MM_MAX),
            ("1e9", DISTANCE_MM_MAX),
            ("0.000000001e18", DISTANCE_MM_MAX),
            ("00000000000000000000000001", 1_000),
        ] {
            assert_eq!(parse_distance(text), Ok(distance_mm), "{text:?}");
        }
    }

    #[test]
    fn too_many_decimals_are_rounded_half_up() {
        for (text, distance_mm) in [
            ("1.0004", 1_000),
            ("1.00049999999999999999999999999999999999999", 1_000),
            ("1.0005", 1_001),
            ("0.0005", 1),
            ("1.9996", 2_000),
            ("999999999.9995", DISTANCE_MM_MAX),
        ] {
            assert_eq!(parse_distance(text), Ok(distance_mm), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_ride_is_out_of_range() {
        for text in [
            "0",
            "-0",
            "0.0",
            "0.0004",
            "-1",
            "-1e400",
            "1e400",
            "1e99999999999999999999",
            "1e-99999999999999999999",
            "1000000000.001",
            "1000000000.0005",
            "0xffffffffffffffffffff",
            "-0x1",
        ] {
            assert_eq!(parse_distance(text), Err(Error::DistanceOutOfRange), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [
            "foo", "12abc", "1.", ".5", ".", "e3", "1e", "1e+", "1__0", "_1", "1_", "0x", "0xg", "0x1.8", "1 2", "--1",
            "NaN", "Infinity", "inf", "1,5", "١", "1e1.5",
        ] {
            assert_eq!(parse_distance(text), Err(Error::DistanceNotANumber), "{text:?}");
        }
        assert_eq!(parse_distance(" "), Err(Error::DistanceMissing));
    }

    #[test]
    fn the_reply_shows_one_decimal() {
        for (distance_mm, text) in
            [(123_000, "123.0"), (123_049, "123.0"), (123_050, "123.1"), (1, "0.0"), (99_950, "100.0")]
        {
            assert_eq!(metres_with_one_decimal(distance_mm), text);
        }
    }
}
