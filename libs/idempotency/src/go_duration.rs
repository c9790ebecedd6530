//! Durations in the notation of Go: `2h45m`, `1.5h`, `-300ms`, `0`.
//!
//! Source: the documentation of `time.ParseDuration` in Go's standard library.

use jiff::SignedDuration;

/// Units and their lengths in nanoseconds. Micro is `u`, the micro sign, or the Greek letter mu.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
];

/// Parses a duration of at most 2^63 nanoseconds (292 years) in either direction. Fractions of a nanosecond are cut off.
/// `None` if the text is not a duration.
pub fn parse_go_duration(text: &str) -> Option<SignedDuration> {
    let (is_negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut sum_ns: u64 = 0;
    while !rest.is_empty() {
        let (part_ns, after) = parse_part(rest)?;
        sum_ns = sum_ns.checked_add(part_ns)?;
        rest = after;
    }
    let signed_ns = if is_negative { -i128::from(sum_ns) } else { i128::from(sum_ns) };
    i64::try_from(signed_ns).ok().map(SignedDuration::from_nanos)
}

/// Parses one number with its unit. Returns nanoseconds and the rest of the text.
fn parse_part(text: &str) -> Option<(u64, &str)> {
    let (whole, rest) = split_digits(text);
    let (fraction, rest) = rest.strip_prefix('.').map_or(("", rest), split_digits);
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let unit_text = &rest[..rest.find(|char: char| char == '.' || char.is_ascii_digit()).unwrap_or(rest.len())];
    let (_, unit_ns) = UNITS.into_iter().find(|(name, _)| *name == unit_text)?;
    let whole_ns = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()?.checked_mul(unit_ns)? };
    // The eighteenth digit of an hour is far below a nanosecond.
    let fraction = &fraction[..fraction.len().min(18)];
    let numerator: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let fraction_ns = numerator * u128::from(unit_ns) / 10_u128.pow(fraction.len() as u32);
    let part_ns = whole_ns.checked_add(u64::try_from(fraction_ns).ok()?)?;
    Some((part_ns, &rest[unit_text.len()..]))
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ns(text: &str) -> Option<i128> {
        parse_go_duration(text).map(|duration| duration.as_nanos())
    }

    #[test]
    fn what_go_reads_is_read() {
        const SECOND: i128 = 1_000_000_000;
        let pairs = [
            ("0", 0),
            ("-0", 0),
            ("+0", 0),
            ("0s", 0),
            ("5s", 5 * SECOND),
            ("-5s", -5 * SECOND),
            ("+5s", 5 * SECOND),
            ("5.s", 5 * SECOND),
            (".5s", SECOND / 2),
            ("1.5h", 5400 * SECOND),
            ("2h45m", 9900 * SECOND),
            ("-2m3.4s", -1234 * SECOND / 10),
            ("3m30s2m", 330 * SECOND),
            ("1h2m3s4ms5us6ns", 3_723_004_005_006),
            ("39h9m14.425s", 140_954_425_000_000),
            ("12\u{b5}s", 12_000),
            ("12\u{3bc}s", 12_000),
            ("52763797000ns", 52_763_797_000),
            ("0.3333333333333333333h", 1_199_999_999_999),
            ("0.100000000000000000000h", 360 * SECOND),
            ("9007199254.740993ms", 9_007_199_254_740_993),
            ("9223372036854775807ns", i128::from(i64::MAX)),
            ("-9223372036854775808ns", i128::from(i64::MIN)),
        ];
        for (text, expected_ns) in pairs {
            assert_eq!(ns(text), Some(expected_ns), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        let texts = [
            "",
            "3",
            "-",
            "s",
            ".",
            "-.",
            ".s",
            "+.s",
            "1d",
            "1 s",
            " 1s",
            "1s ",
            "--1s",
            "+-1s",
            "1e3s",
            "1.2.3s",
            "0x1s",
            "1S",
            "\u{664}s",
            "1sm",
            "10",
            "1h5",
            "9223372036854775808ns",
            "-9223372036854775809ns",
            "3000000h",
            "18446744073709551616ns",
            "9223372036s9223372036s",
        ];
        for text in texts {
            assert_eq!(ns(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_go_would_print_is_read_back(total_ns in i64::MIN + 1..=i64::MAX) {
            let (sign, ns_abs) = if total_ns < 0 { ("-", total_ns.unsigned_abs()) } else { ("", total_ns.unsigned_abs()) };
            let (total_s, fraction_ns) = (ns_abs / 1_000_000_000, ns_abs % 1_000_000_000);
            let text = format!("{sign}{}h{}m{}.{fraction_ns:09}s", total_s / 3600, total_s / 60 % 60, total_s % 60);
            prop_assert_eq!(ns(&text), Some(i128::from(total_ns)));
        }

        #[test]
        fn nothing_makes_it_panic(text in "[-+]?[0-9.hmsnu\u{b5} e]{0,40}") {
            parse_go_duration(&text);
        }
    }
}
